"""Where a service of the file listens, and which places two services cannot share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

import pytest

from tests.support.loading import DEFAULTS, GOOD, error_of, service, services
from vsock_proxy.settings import ServiceOptions
from vsock_proxy.supervision.judging import names_of

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

GOOD_LINES = "listen: 8000\n  address: a.example\n  port: 443"


def test_each_transport_and_several_addresses_may_have_the_same_port(
    file: Path,
) -> None:
    places = ["uds_path: /a", "uds_path: /b", "listen_tcp: '::1'", "listen_tcp: 0.0.0.0"]
    found = services(
        file, "".join(f"\n- {{{GOOD}, {place}}}" for place in places) + f"\n- {{{GOOD}}}"
    )
    assert [each.path for each in found] == ["/a_8000", "/b_8000", None, None, None]
    assert [each.tcp_place for each in found] == [None, None, "[::1]:8000", "0.0.0.0:8000", None]
    assert names_of(found) == ["/a_8000", "/b_8000", "[::1]:8000", "0.0.0.0:8000", "8000"]


@pytest.mark.parametrize(
    ("keys", "options", "said"),
    [
        ("allow_cid: [16], uds_path: /v", DEFAULTS, "allow_cid together with uds_path"),
        ("allow_cid: [16]", ServiceOptions(uds_path="/v"), "allow_cid together with --uds-path"),
        (
            "uds_path: /v",
            ServiceOptions(allowed_cids=frozenset({16})),
            "--allow-cid together with uds_path",
        ),
    ],
    ids=["both in the file", "path of the command line", "CIDs of the command line"],
)
def test_a_unix_socket_cannot_tell_the_cids_to_serve(
    file: Path, keys: str, options: ServiceOptions, said: str
) -> None:
    assert error_of(file, f"\n- {{{GOOD}, {keys}}}", options) == (
        f"line 3: {said}; expected one of them, because a Unix socket does not tell the CID"
    )


@pytest.mark.parametrize(
    ("keys", "options", "said"),
    [
        ("allow_cid: [16], listen_tcp: '::'", DEFAULTS, "allow_cid together with listen_tcp"),
        (
            "allow_cid: [16]",
            ServiceOptions(listen_tcp="::"),
            "allow_cid together with --listen-tcp",
        ),
        (
            "listen_tcp: '::'",
            ServiceOptions(allowed_cids=frozenset({16})),
            "--allow-cid together with listen_tcp",
        ),
    ],
    ids=["both in the file", "address of the command line", "CIDs of the command line"],
)
def test_tcp_clients_have_no_cids_to_serve(
    file: Path, keys: str, options: ServiceOptions, said: str
) -> None:
    assert error_of(file, f"\n- {{{GOOD}, {keys}}}", options) == (
        f"line 3: {said}; expected one of them, because a TCP client has none"
    )


def test_a_service_listens_in_one_place(file: Path) -> None:
    assert error_of(file, f"\n- {GOOD_LINES}\n  uds_path: /v\n  listen_tcp: '::'") == (
        "line 7: listen_tcp together with uds_path; expected one of them, because a service "
        "listens in one place"
    )


@pytest.mark.parametrize(
    ("key", "options", "path", "place"),
    [
        ("uds_path: /v", ServiceOptions(listen_tcp="::"), "/v_8000", None),
        ("listen_tcp: '::1'", ServiceOptions(uds_path="/v"), None, "[::1]:8000"),
        ("listen_tcp: '::1'", ServiceOptions(listen_tcp="::"), None, "[::1]:8000"),
        ("workers: 1", ServiceOptions(listen_tcp="::"), None, "[::]:8000"),
    ],
)
def test_the_transport_of_a_service_comes_before_that_of_the_command_line(
    file: Path, key: str, options: ServiceOptions, path: Optional[str], place: Optional[str]
) -> None:
    made = service(file, f"{GOOD}, {key}", options)
    assert (made.path, made.tcp_place) == (path, place)


@pytest.mark.parametrize(
    ("key", "options"),
    [("listen_tcp: '::1', ", DEFAULTS), ("", ServiceOptions(listen_tcp="::1"))],
    ids=["by the file", "by the command line"],
)
@pytest.mark.parametrize(("port", "fits"), [(0, False), (1, True), (65535, True), (65536, False)])
def test_a_service_on_tcp_has_a_tcp_port(
    file: Path, key: str, options: ServiceOptions, port: int, fits: bool
) -> None:
    content = f"{key}listen: {port}, address: a, port: 1"
    if fits:
        assert service(file, content, options).local_port == port
    else:
        assert error_of(file, f"\n- {{{content}}}", options) == (
            f"line 3: listen is '{port}'; expected an integer from 1 to 65535"
        )


def test_a_service_with_a_path_of_its_own_has_a_vsock_port(file: Path) -> None:
    options = ServiceOptions(listen_tcp="::1")
    assert service(file, "listen: 70000, address: a, port: 1, uds_path: /v", options).path


@pytest.mark.parametrize("value", ["", "localhost", "[]", "224.0.0.1", "8080", "'::%lo'"])
def test_what_is_no_address_to_listen_on_is_an_error_with_its_line(file: Path, value: str) -> None:
    assert re.fullmatch(
        r"line 3: listen_tcp is .*; expected an IP address of this machine, with %INTERFACE if it "
        r"is link-local, or 0\.0\.0\.0 or :: for all",
        error_of(file, f"\n- {{{GOOD}, listen_tcp: {value}}}"),
    )


@pytest.mark.parametrize(
    ("content", "line", "name", "first"),
    [
        (f"\n- {{{GOOD}}}\n\n- {{{GOOD}}}", 5, "vsock port 8000", 3),
        (
            "\n- listen: 8000\n  address: a\n  port: 1\n- address: b\n  port: 2\n  listen: 8000",
            8,
            "vsock port 8000",
            3,
        ),
        (f"\n- &a {{{GOOD}}}\n- *a", 3, "vsock port 8000", 3),
        (
            f"\n- {{{GOOD}, uds_path: /a}}\n- {{{GOOD}, uds_path: /a}}",
            4,
            "Unix socket /a_8000",
            3,
        ),
        (
            f"\n- {{{GOOD}, uds_path: /a/v}}\n- {{{GOOD}, uds_path: /a//./v}}",
            4,
            "Unix socket /a/v_8000",
            3,
        ),
        (
            f"\n- {{{GOOD}, uds_path: /a/v}}\n- {{{GOOD}, uds_path: //a/v}}",
            4,
            "Unix socket /a/v_8000",
            3,
        ),
        (
            f"\n- {{{GOOD}, listen_tcp: 'fe80::1%lo'}}\n- {{{GOOD}, listen_tcp: 'fe80::1%1'}}",
            4,
            "TCP [fe80::1%lo]:8000",
            3,
        ),
        (
            f"\n- {{{GOOD}, listen_tcp: '::1'}}\n- {{{GOOD}, listen_tcp: '0::1'}}",
            4,
            "TCP [::1]:8000",
            3,
        ),
        (
            f"\n- {{{GOOD}, listen_tcp: '::', family: ipv6}}\n- {{{GOOD}, listen_tcp: '::'}}",
            4,
            "TCP [::]:8000",
            3,
        ),
    ],
    ids=[
        "vsock",
        "apart from its line",
        "alias",
        "Unix",
        "Unix, spelled differently",
        "Unix, with two slashes before it",
        "TCP, by the number of the interface",
        "TCP",
        "TCP, of another family",
    ],
)
def test_two_services_in_one_place_are_named_both(
    file: Path, content: str, line: int, name: str, first: int
) -> None:
    assert error_of(file, content) == (
        f"line {line}: a second service on {name}, the first is in line {first}; expected one for "
        "each"
    )
