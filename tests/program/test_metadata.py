"""Region and domain of the endpoint's name, from the instance metadata service."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, List, Mapping

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.means import need_address
from tests.support.metadata import DOMAIN, REGION, TOKEN, Behaviour, MetadataService
from tests.support.program import PROJECT, run
from tests.support.servers import Handler, exchange
from tests.support.timing import SLOWNESS
from vsock_proxy.config import metadata
from vsock_proxy.config.metadata import _address, fill, look_up, look_up_apart, placeholders, values
from vsock_proxy.errors import TryAgainError, UsageError
from vsock_proxy.process.signals import Signals

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


# Services that do not behave

HEAD = b"HTTP/1.1 200 OK\r\n"


def behaving_badly(answer: Callable[[socket.socket], None]) -> Handler:
    """A service that reads the request, and then does what it likes."""

    def handle(connection: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += connection.recv(4096)
        try:
            answer(connection)
        except OSError:
            pass  # who asked has gone
        connection.close()

    return handle


def again_and_again(data: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    """Sends the same without end."""

    def send(connection: socket.socket) -> None:
        while True:
            connection.sendall(data)
            time.sleep(pause)

    return send


def first(head: bytes, then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        then(connection)

    return send


ENDLESS = {
    "a status line byte by byte": again_and_again(b"H", 0.1),
    "a header byte by byte": first(HEAD + b"X: ", again_and_again(b"x", 0.1)),
    "a header without end": first(HEAD + b"X: ", again_and_again(b"x" * 4096)),
    "headers without end": first(HEAD, again_and_again(b"X: y\r\n")),
    "100 Continue without end": again_and_again(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 Continue now and then": again_and_again(b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
    "a body byte by byte": first(HEAD + b"Content-Length: 900\r\n\r\n", again_and_again(b"a", 0.1)),
    "chunks without end": first(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", again_and_again(b"1\r\na\r\n", 0.1)
    ),
    "a chunk's size without end": first(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", again_and_again(b"0" * 4096)
    ),
}


@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_answer_without_end_is_given_up_in_time(
    start_server: StartServer, answer: Callable[[socket.socket], None]
) -> None:
    server = start_server(behaving_badly(answer))
    began = time.monotonic()
    with pytest.raises(TryAgainError, match="no instance metadata"):
        look_up(["{region}"], [f"http://127.0.0.1:{server.port}"], patience=1.5)
    assert time.monotonic() - began < 1.5 + 1 * SLOWNESS


BAD_ANSWERS = {
    "cut short": b"Content-Length: 9\r\n\r\neu-west-",
    "cut short where it looks whole": b"Content-Length: 10\r\n\r\neu-west-1",
    "no length": b"\r\neu-west-1",
    "no body": b"\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\neu-west-1",
    "no number": b"Content-Length: many\r\n\r\neu-west-1",
    "two lengths": b"Content-Length: 9\r\nContent-Length: 8\r\n\r\neu-west-1",
    "a length beyond all": b"Content-Length: 99999999999999999999\r\n\r\neu-west-1",
    "chunks cut short": b"Transfer-Encoding: chunked\r\n\r\n8\r\neu-west-\r\n",
    "a chunk cut short": b"Transfer-Encoding: chunked\r\n\r\n9\r\neu-west-",
    "a chunk of no size": b"Transfer-Encoding: chunked\r\n\r\nx\r\neu-west-1\r\n0\r\n\r\n",
    "a chunk of negative size": b"Transfer-Encoding: chunked\r\n\r\n-5\r\neu-west-1\r\n0\r\n\r\n",
    "a hyphen at the end": b"Content-Length: 8\r\n\r\neu-west-",
    "too long": b"Content-Length: 2000\r\n\r\n" + b"a" * 2000,
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_an_answer_that_is_not_whole_is_none(start_server: StartServer, answer: bytes) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(HEAD + answer)

    with pytest.raises(TryAgainError, match="no instance metadata"):
        ask_for_region(start_server, send)


GOOD_ANSWERS = {
    "longer than it says": b"Content-Length: 9\r\n\r\neu-west-1234",
    "the length twice": b"Content-Length: 9\r\nContent-Length: 9\r\n\r\neu-west-1",
    "in chunks": b"Transfer-Encoding: chunked\r\n\r\n8\r\neu-west-\r\n1\r\n1\r\n0\r\n\r\n",
    "with an end of line": b"Content-Length: 10\r\n\r\neu-west-1\n",
}


@pytest.mark.parametrize("answer", GOOD_ANSWERS.values(), ids=GOOD_ANSWERS.keys())
def test_an_answer_is_as_long_as_it_says(start_server: StartServer, answer: bytes) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + answer)

    assert ask_for_region(start_server, send) == "eu-west-1"


def ask_for_region(start_server: StartServer, answer: Callable[[socket.socket], None]) -> str:
    """What comes of a service without tokens whose answer to the question is this."""
    first_time = iter([True])

    def handle(connection: socket.socket) -> None:
        if next(first_time, False):
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            answer(connection)

    server = start_server(behaving_badly(handle))
    return look_up(["{region}"], [f"http://127.0.0.1:{server.port}"], patience=0)["{region}"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"\xff\x00\x1b[31m\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"\xff\xfe: \xff\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6" + b"y" * 60_000 + b"\r\n",
    ],
)
def test_what_is_no_answer_is_told_in_one_short_line(
    start_server: StartServer, answer: bytes
) -> None:
    server = start_server(behaving_badly(lambda connection: connection.sendall(answer)))
    with pytest.raises(TryAgainError) as caught:
        look_up(["{region}"], [f"http://127.0.0.1:{server.port}"], patience=0)
    assert len(str(caught.value)) < 500


def test_a_search_that_hangs_in_a_lookup_is_ended(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "look_up", lambda *asked: time.sleep(60))
    monkeypatch.setattr(metadata, "GRACE", 0.2)
    began = time.monotonic()
    with pytest.raises(TryAgainError, match=r"within 0\.3 s"):
        look_up_apart(signals)(["{region}"], ["http://127.0.0.1"], 0.1)
    assert time.monotonic() - began < 5


# In the program


def test_all_services_of_the_file_ask_once_together(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service()
    file = tmp_path / "proxy.yaml"
    file.write_text(
        """
allowlist: [{address: kms.eu-west-1.amazonaws.com, port: 443}]
services:
- {listen: 8000, address: 'kms.{region}.{domain}', port: 443}
- {listen: 8001, address: 's3.{region}.{domain}', port: 443}
- {listen: 8002, address: 'sts.{domain}', port: 443}
"""
    )
    done = run("--config", str(file), environment={**os.environ, **asking(service)})
    assert "service 8001: s3.eu-west-1.amazonaws.com:443 is not permitted" in done.stderr
    assert service.paths() == ["/latest/api/token", REGION, DOMAIN]


def test_the_expanded_name_is_what_the_allowlist_must_permit(
    start_service: StartService, write_allowlist: Callable[..., Path]
) -> None:
    service = start_service(values={DOMAIN: "localhost"})
    allowlist = write_allowlist(("kms.us-east-1.amazonaws.com", 443))
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
    code = "import sys; from vsock_proxy import __main__\nfrom vsock_proxy.config import metadata\n"
    code += "metadata.PATIENCE = 0.0\n"
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
