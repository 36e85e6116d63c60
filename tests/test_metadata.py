"""Region and domain of the endpoint's name, from the instance metadata service."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.means import need_address
from tests.support.metadata import DOMAIN, REGION, TOKEN, Behaviour, MetadataService
from tests.support.program import PROJECT, run
from tests.support.servers import exchange
from vsock_proxy.errors import TryAgainError, UsageError
from vsock_proxy.metadata import expand, look_up

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

StartService = Callable[..., MetadataService]
NAME = "kms.{region}.{domain}"


@pytest.fixture
def start_service() -> Iterator[StartService]:
    services: List[MetadataService] = []

    def start(host: str = "127.0.0.1", **behaviour: object) -> MetadataService:
        need_address(host)
        services.append(MetadataService(Behaviour(**behaviour), host))  # type: ignore[arg-type]
        return services[-1]

    yield start
    for service in services:
        service.close()


def asking(service: MetadataService, **variables: str) -> dict[str, str]:
    """An environment in which that service is the one to ask."""
    return {"VSOCK_PROXY_IMDS_ENDPOINT": service.endpoint, **variables}


def nobody_listens() -> str:
    """An endpoint that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_region_and_domain_are_filled_in(start_service: StartService) -> None:
    assert expand(NAME, asking(start_service())) == "kms.eu-west-1.amazonaws.com"


def test_a_token_is_asked_for_once_and_shown_with_each_question(
    start_service: StartService,
) -> None:
    service = start_service()
    expand(NAME, asking(service))
    assert service.requests == [
        ("PUT", "/latest/api/token", "60"),
        ("GET", REGION, TOKEN),
        ("GET", DOMAIN, TOKEN),
    ]


@pytest.mark.parametrize("status", [404, 405])
def test_a_service_that_knows_no_tokens_is_asked_without_one(
    start_service: StartService, status: int
) -> None:
    service = start_service(token_status=status)
    assert expand(NAME, asking(service)) == "kms.eu-west-1.amazonaws.com"
    assert service.requests[1:] == [("GET", REGION, ""), ("GET", DOMAIN, "")]


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_refused_token_is_no_reason_to_ask_without_one(
    start_service: StartService, status: int
) -> None:
    service = start_service(token_status=status)
    with pytest.raises(TryAgainError, match=f"status {status} for /latest/api/token"):
        look_up(["{region}"], [service.endpoint], patience=0)
    assert service.paths() == ["/latest/api/token"]


def test_a_name_without_placeholders_asks_nobody(start_service: StartService) -> None:
    service = start_service()
    assert expand("kms.eu-west-1.amazonaws.com", asking(service)) == "kms.eu-west-1.amazonaws.com"
    assert service.requests == []


def test_only_what_the_name_contains_is_asked_for(start_service: StartService) -> None:
    service = start_service()
    assert expand("kms.{region}.example", asking(service)) == "kms.eu-west-1.example"
    assert service.paths() == ["/latest/api/token", REGION]


def test_aws_region_overrides_the_region_and_not_the_domain(start_service: StartService) -> None:
    service = start_service()
    environment = asking(service, AWS_REGION="us-gov-west-1")
    assert expand(NAME, environment) == "kms.us-gov-west-1.amazonaws.com"
    assert service.paths() == ["/latest/api/token", DOMAIN]


def test_with_aws_region_nobody_is_asked_for_a_name_without_domain() -> None:
    environment = {"VSOCK_PROXY_IMDS_ENDPOINT": nobody_listens(), "AWS_REGION": "eu-west-1"}
    assert expand("kms.{region}.example", environment) == "kms.eu-west-1.example"


def test_where_ipv4_does_not_answer_ipv6_is_asked(start_service: StartService) -> None:
    service = start_service("::1")
    values = look_up(["{region}"], [nobody_listens(), service.endpoint], patience=0)
    assert values == {"{region}": "eu-west-1"}


def test_where_ipv4_answers_ipv6_is_not_asked(start_service: StartService) -> None:
    broken, other = start_service(token_status=500), start_service("::1")
    with pytest.raises(TryAgainError):
        look_up(["{region}"], [broken.endpoint, other.endpoint], patience=0)
    assert other.requests == []


def test_a_service_that_is_not_up_yet_is_asked_again(start_service: StartService) -> None:
    service = start_service(unready=2)
    assert look_up(["{region}"], [service.endpoint], patience=10) == {"{region}": "eu-west-1"}
    assert service.paths() == ["/latest/api/token"] * 3 + [REGION]


def test_the_search_ends_when_the_patience_does() -> None:
    began = time.monotonic()
    with pytest.raises(TryAgainError, match="Connection refused"):
        look_up(["{region}"], [nobody_listens()], patience=0.8)
    assert 0.25 <= time.monotonic() - began < 3


def test_a_service_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(TryAgainError, match="timed out"):
            look_up(["{region}"], [endpoint], patience=0)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "value", ["", "eu west 1", "<html>", "a" * 2000, "..", "é"], ids=lambda value: value[:9]
)
def test_an_answer_that_cannot_be_part_of_a_name_is_refused(
    start_service: StartService, value: str
) -> None:
    service = start_service(values={REGION: value, DOMAIN: value})
    for name in ("{region}", "{domain}"):
        with pytest.raises(TryAgainError, match="for /latest/meta-data"):
            look_up([name], [service.endpoint], patience=0)


def test_the_proxies_of_the_environment_are_not_used(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", nobody_listens())
    assert expand("{region}", asking(start_service())) == "eu-west-1"


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_REGION": "eu west"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "169.254.169.254"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "https://169.254.169.254"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host:port"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://"},
    ],
)
def test_a_malformed_variable_is_a_usage_error_that_names_it(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(variables))):
        expand(NAME, variables)


# In the program


def test_the_expanded_name_is_what_the_allowlist_must_permit(
    start_service: StartService, write_allowlist: Callable[..., Path]
) -> None:
    service = start_service(values={DOMAIN: "localhost"})
    allowlist = write_allowlist(("{domain}", 443), ("kms.us-east-1.amazonaws.com", 443))
    environment = {**os.environ, **asking(service)}
    done = run("--config", str(allowlist), "8000", "{domain}", "443", environment=environment)
    assert done.returncode == os.EX_CONFIG
    assert "localhost:443 is not permitted" in done.stderr


def test_the_expanded_name_is_served(
    start_service: StartService,
    start_proxy: StartProxy,
    start_server: StartServer,
    write_allowlist: Callable[..., Path],
) -> None:
    service = start_service(values={DOMAIN: "localhost"})
    server = start_server()
    proxy = start_proxy(
        ("{domain}", server.port),
        config=write_allowlist(("localhost", server.port)),
        environment={**os.environ, **asking(service)},
    )
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


def test_without_a_metadata_service_the_exit_code_is_75(
    write_allowlist: Callable[..., Path],
) -> None:
    config = str(write_allowlist(("kms.us-east-1.amazonaws.com", 443)))
    code = "import sys; from vsock_proxy import __main__, metadata; metadata.PATIENCE = 0.0; "
    impatient = [sys.executable, "-c", code + "sys.exit(__main__.main())"]
    done = subprocess.run(
        [*impatient, "--config", config, "8000", NAME, "443"],
        env={**os.environ, "VSOCK_PROXY_IMDS_ENDPOINT": nobody_listens()},
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == os.EX_TEMPFAIL
    assert len(done.stderr.splitlines()) == 1
    assert "no instance metadata for {region} and {domain}" in done.stderr


def test_another_word_in_braces_is_a_usage_error() -> None:
    done = run("8000", "kms.{zone}.example", "443")
    assert done.returncode == os.EX_USAGE
    assert "kms.{zone}.example" in done.stderr
