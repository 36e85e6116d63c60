"""Region and domain of the endpoint's name, from the instance metadata service."""

from __future__ import annotations

import socket
import time
from typing import Mapping

import pytest

from tests.conftest import StartService
from tests.support.metadata import DOMAIN, NAME, REGION, TOKEN, asking, nobody_listens
from vsock_proxy.config.metadata import _address, fill, look_up, placeholders, values
from vsock_proxy.errors import TryAgainError, UsageError

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def expand(host: str, environment: Mapping[str, str]) -> str:
    return fill(host, values(placeholders([host]), environment=environment))


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


@pytest.mark.parametrize("token", ["", "two words", "a\r\nHost: b"])
def test_a_token_that_cannot_be_shown_is_no_token(start_service: StartService, token: str) -> None:
    service = start_service(token=token)
    with pytest.raises(TryAgainError, match="a malformed token"):
        look_up(["{region}"], [service.endpoint], patience=0)
    assert service.paths() == ["/latest/api/token"]


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


def test_what_several_names_contain_is_asked_for_once(start_service: StartService) -> None:
    service = start_service()
    names = placeholders(["kms.{region}.{domain}", "a.example", "{domain}", "s3.{region}.x"])
    assert names == ("{region}", "{domain}")
    found = values(names, environment=asking(service))
    assert service.paths() == ["/latest/api/token", REGION, DOMAIN]
    assert fill("s3.{region}.x", found) == "s3.eu-west-1.x"
    assert fill("a.example", found) == "a.example"


def test_what_is_known_is_not_asked_for_again(start_service: StartService) -> None:
    service = start_service()
    known = {"{region}": "eu-north-1"}
    assert values(["{region}"], known, asking(service)) == known
    assert service.requests == []
    assert values(["{region}", "{domain}"], known, asking(service)) == {
        "{region}": "eu-north-1",
        "{domain}": "amazonaws.com",
    }
    assert service.paths() == ["/latest/api/token", DOMAIN]


def test_a_name_that_is_none_when_it_is_filled_in_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        fill("x" * 200 + ".{region}", {"{region}": "a" * 60})
    assert str(caught.value).startswith(
        f"{'x' * 200}.{{region}} must become a host name or an IP address; 'xxx"
    )
    with pytest.raises(UsageError, match=r"'kms\.1' is no host name, because it ends in a number"):
        fill("kms.{region}", {"{region}": "1"})


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
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://a..b:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://16:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://127.1:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": f"http://{'a' * 64}:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://-a:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://b\u00fccher.example"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host:0"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host:65536"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host:+80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host:8\u0660"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://user:word@host:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host/latest"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host?x"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://host#x"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://ho\nst"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://[::1"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://[1.2.3.4]:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://[:::]:80"},
        {"VSOCK_PROXY_IMDS_ENDPOINT": "http://fd00:ec2::254"},
    ],
)
def test_a_malformed_variable_is_a_usage_error_that_names_it(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(variables))):
        expand(NAME, variables)


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://169.254.169.254", "169.254.169.254:80"),
        ("HTTP://Host.example:8080/", "Host.example:8080"),
        ("http://host:", "host:80"),
        ("http://[fd00:ec2::254]", "[fd00:ec2::254]:80"),
        ("http://[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
        ("http://[fe80::1%25eth0]:80", "[fe80::1%eth0]:80"),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(endpoint: str, address: str) -> None:
    assert str(_address(endpoint)) == address
