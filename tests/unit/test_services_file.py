"""The services of the file: what they say, and what is said of those that are wrong."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from pathlib import Path
from typing import Optional, Tuple

import pytest
import yaml

from tests.support.timing import SLOWNESS
from vsock_proxy.config import loading
from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings
from vsock_proxy.supervision.judging import names_of

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

DEFAULTS = ServiceOptions()
GOOD = "listen: 8000, address: a.example, port: 443"
GOOD_LINES = "listen: 8000\n  address: a.example\n  port: 443"
KEYS = (
    "listen, address, port, workers, family, uds_path, listen_tcp, allow_cid, connect_timeout, "
    "idle_timeout, resolve_interval"
)
SECONDS = "a number of seconds such as 10 or 0.5"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "proxy.yaml"


def services(
    file: Path, content: str, options: ServiceOptions = DEFAULTS, workers: int = 4
) -> Tuple[ServiceSettings, ...]:
    file.write_text(f"allowlist: []\nservices:{content}\n", encoding="utf-8")
    return loading.load(str(file)).services(options, workers)


def service(file: Path, keys: str, options: ServiceOptions = DEFAULTS) -> ServiceSettings:
    (found,) = services(file, f"\n- {{{keys}}}", options)
    return found


def error_of(file: Path, content: str, options: ServiceOptions = DEFAULTS, workers: int = 4) -> str:
    """What is said of it, without what all such messages begin with."""
    with pytest.raises(ConfigurationError) as caught:
        services(file, content, options, workers)
    prefix, message = f"services {file}, ", str(caught.value)
    assert message.startswith(prefix)
    assert "\n" not in message
    return message[len(prefix) :]


def test_a_service_is_a_port_and_an_endpoint(file: Path) -> None:
    assert service(file, GOOD) == ServiceSettings(8000, Endpoint("a.example", 443), DEFAULTS)


def test_every_option_of_a_service_can_stand_in_the_file(file: Path) -> None:
    on_vsock, on_unix = services(
        file,
        f"""
- {{{GOOD}, workers: 16, family: ipv6, allow_cid: [16, 17], connect_timeout: .5}}
- {{{GOOD}, uds_path: /run/v.sock, idle_timeout: 60, resolve_interval: 1.5, family: ipv4}}""",
    )
    assert on_vsock.workers == 16
    assert on_vsock.path is None
    assert on_vsock.options == ServiceOptions(
        family=socket.AF_INET6, allowed_cids=frozenset({16, 17}), connect_timeout=0.5
    )
    assert on_unix.workers is None
    assert on_unix.path == "/run/v.sock_8000"
    assert on_unix.options == ServiceOptions(
        family=socket.AF_INET, uds_path="/run/v.sock", idle_timeout=60, resolve_interval=1.5
    )


def test_what_a_service_does_not_say_is_as_on_the_command_line(file: Path) -> None:
    options = ServiceOptions(
        family=socket.AF_INET6,
        uds_path="/run/v.sock",
        connect_timeout=1,
        idle_timeout=2,
        resolve_interval=3,
    )
    assert service(file, GOOD, options).options == options
    changed = service(file, f"{GOOD}, family: ipv4, uds_path: /run/w, idle_timeout: 0", options)
    assert changed.options == ServiceOptions(
        family=socket.AF_INET,
        uds_path="/run/w",
        connect_timeout=1,
        idle_timeout=0,
        resolve_interval=3,
    )


def test_services_are_in_the_order_of_the_file(file: Path) -> None:
    found = services(file, "".join(f"\n- {{listen: {n}, address: a, port: 1}}" for n in (9, 5, 7)))
    assert [each.local_port for each in found] == [9, 5, 7]


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
    "address", ["'kms.{region}.{domain}'", "'{region}'", "10.0.0.1", "'fe80::1%lo'", "bücher.de"]
)
def test_an_endpoint_of_the_command_line_may_stand_in_the_file(file: Path, address: str) -> None:
    found = service(file, f"listen: 8000, address: {address}, port: 443")
    assert found.endpoint.host == address.strip("'")


def test_an_unquoted_ipv6_address_of_decimal_groups_is_an_address(file: Path) -> None:
    (found,) = services(file, "\n- listen: 8000\n  address: 1:2:3:4:5:6:7:8\n  port: 443")
    assert found.endpoint.host == "1:2:3:4:5:6:7:8"


def test_values_may_be_repeated_by_aliases(file: Path) -> None:
    first, second = services(
        file,
        """
- {listen: 8000, address: &a a.example, port: &p 443, allow_cid: &c [16]}
- {listen: 8001, address: *a, port: *p, allow_cid: *c}""",
    )
    assert first.endpoint == second.endpoint
    assert first.options == second.options


NUMBERS = {
    "listen": ("an integer from 4 to 4294967294", ["3", "4294967295", "9" * 400]),
    "port": ("an integer from 1 to 65535", ["0", "65536"]),
    "workers": ("an integer from 1 to 10000", ["0", "10001"]),
    "connect_timeout": ("a number of seconds from 0.001 to 1000000", ["0", "0.0001", "1000001"]),
    "idle_timeout": ("a number of seconds from 0 to 1000000", ["1000000.5"]),
    "resolve_interval": ("a number of seconds from 0.1 to 1000000", ["0", ".09"]),
}
# What YAML 1.1 or Python would take for a number all the same, or what is none.
NO_NUMBERS = {
    "'8000'": "the text '8000'",
    '"8000"': "the text '8000'",
    "true": "'true'",
    "yes": "'yes'",
    "": "nothing",
    "~": "'~'",
    "0x10": "'0x10'",
    "010": "'010'",
    "0b11": "'0b11'",
    "1_000": "'1_000'",
    "1:30": "'1:30'",
    "-5": "'-5'",
    "1e3": "'1e3'",
    ".inf": "'.inf'",
    ".nan": "'.nan'",
    "1.": "'1.'",
    "ten": "'ten'",
    "10s": "'10s'",
    "\u0668": "'\u0668'",
    "[10]": "a list",
    "{a: 10}": "a mapping",
    "2026-01-01": "'2026-01-01'",
}


def lines(**changed: str) -> str:
    """One service, each of its keys in a line; the one that is changed in the last, the sixth."""
    keys = {"listen": "8000", "address": "a.example", "port": "443"}
    (name,) = changed
    keys.pop(name, None)
    padding = 6 - 3 - len(keys)
    return (
        "\n" * (1 + padding)
        + "-"
        + "".join(f" {key}: {value}\n " for key, value in keys.items())
        + f" {name}: {changed[name]}"
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [(name, value, rule) for name, (rule, values) in NUMBERS.items() for value in values],
)
def test_a_number_out_of_its_range_is_named(
    file: Path, name: str, value: str, expected: str
) -> None:
    assert error_of(file, lines(**{name: value})) == (
        f"line 6: {name} is '{value[:60]}'; expected {expected}"
    )


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_named(file: Path, name: str, value: str) -> None:
    expected = SECONDS if "seconds" in NUMBERS[name][0] else NUMBERS[name][0]
    assert error_of(file, lines(**{name: value})) == (
        f"line 6: {name} is {NO_NUMBERS[value]}; expected {expected}"
    )


@pytest.mark.parametrize("name", ["listen", "port", "workers"])
def test_a_fraction_is_no_integer(file: Path, name: str) -> None:
    assert error_of(file, lines(**{name: "8000.0"})) == (
        f"line 6: {name} is '8000.0'; expected {NUMBERS[name][0]}"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("16", "'16', which is a number; a guest is written vsock:CID"),
        ("x:443", "'x:443', which is no host name; the port is given apart from it"),
        ("'[::1]'", "the text '[::1]', which is no host name; an IPv6 address is written without"),
        ("http://x", "'http://x', which is a URL; give the host name alone"),
        ("127.1", "'127.1', which is no host name, because it ends in a number; as an IP address"),
        ("'*.example'", "the text '*.example', which is no host name"),
        ("10.0.0.0/8", "'10.0.0.0/8', which is no host name"),
        ("a..b", "'a..b', which is no host name: there is nothing before or between its dots"),
        ("'kms.{regio}'", "the text 'kms.{regio}', which is no host name"),
        ("'a b'", "the text 'a b', which is no host name"),
        ("''", "the text '', which is no host name"),
        ("", "nothing, which is no host name"),
        ("true", "'true', which is no host name"),
        ("[a]", "a list, which is no host name"),
        ('"\\0"', "the text '\\x00', which is no host name"),
        ("ß" * 9_999, f"'{'ß' * 60}', which is longer than the 253 characters of a host name"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_an_endpoint_that_can_be_no_host_is_named(file: Path, value: str, said: str) -> None:
    message = error_of(file, lines(address=value))
    assert message.startswith(f"line 6: address is {said}")
    assert message.endswith("; expected a host name, an IP address, vsock:CID or unix:PATH")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("family", "ipv5", "family is 'ipv5'; expected ipv4 or ipv6"),
        ("family", "4", "family is '4'; expected ipv4 or ipv6"),
        ("family", "IPv4", "family is 'IPv4'; expected ipv4 or ipv6"),
        ("family", "", "family is nothing; expected ipv4 or ipv6"),
        ("family", "[ipv4]", "family is a list; expected ipv4 or ipv6"),
        ("allow_cid", "16", "allow_cid is '16'; expected a list of CIDs such as [16, 17]"),
        ("allow_cid", "16,17", "allow_cid is '16,17'; expected a list of CIDs such as [16, 17]"),
        ("allow_cid", "[]", "allow_cid is an empty list; expected a list of CIDs such as [16, 17]"),
        ("allow_cid", "", "allow_cid is nothing; expected a list of CIDs such as [16, 17]"),
        ("allow_cid", "{a: 1}", "allow_cid is a mapping; expected a list of CIDs such as [16, 17]"),
        (
            "allow_cid",
            "[16, '17']",
            "allow_cid has the text '17'; expected an integer from 0 to 4294967294",
        ),
        ("allow_cid", "[0x10]", "allow_cid has '0x10'; expected an integer from 0 to 4294967294"),
        ("allow_cid", "[-1]", "allow_cid has '-1'; expected an integer from 0 to 4294967294"),
        ("allow_cid", "[[16]]", "allow_cid has a list; expected an integer from 0 to 4294967294"),
        (
            "allow_cid",
            "[4294967295]",
            "allow_cid has '4294967295'; expected an integer from 0 to 4294967294",
        ),
        ("uds_path", "", "uds_path is nothing; expected a path that with _PORT is at most"),
        ("uds_path", "''", "uds_path is the text ''; expected a path that with _PORT is at most"),
        ("uds_path", "[/a]", "uds_path is a list; expected a path that with _PORT is at most"),
        ("uds_path", "yes", "uds_path is 'yes'; expected a path that with _PORT is at most"),
        ("uds_path", '"/a\\0"', "uds_path is the text '/a\\x00'; expected a path that with _PORT"),
        ("uds_path", "/" * 106, f"uds_path is '{'/' * 60}'; expected a path that with _PORT"),
        ("uds_path", "/ü" * 40, f"uds_path is '{'/ü' * 30}'; expected a path that with _PORT"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_another_value_that_cannot_be_is_named(
    file: Path, name: str, value: str, said: str
) -> None:
    assert error_of(file, lines(**{name: value})).startswith(f"line 6: {said}")


def test_a_unix_path_may_be_as_long_as_the_system_permits(file: Path) -> None:
    longest = "/" * (107 - len("_8000"))
    assert service(file, f"{GOOD}, uds_path: {longest}").path == f"{longest}_8000"
    message = error_of(file, f"\n- {{{GOOD}, uds_path: /{longest}}}")
    assert message.startswith("line 3: uds_path is '//")
    assert message.endswith("expected a path that with _PORT is at most 107 bytes")


def test_a_unix_path_of_the_command_line_must_have_room_for_every_port(file: Path) -> None:
    options = ServiceOptions(uds_path="/" * 103)
    assert services(file, "\n- {listen: 999, address: a, port: 1}", options)
    message = error_of(file, f"\n- {{{GOOD}}}", options)
    assert message.startswith("line 3: --uds-path is '//")
    assert message.endswith("expected a path that with _PORT is at most 107 bytes")


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
    ("address", "family", "option"),
    [
        ("10.0.0.1", "ipv6", "-6"),
        ("'::ffff:10.0.0.1'", "ipv6", "-6"),
        ("'2001:db8::1'", "ipv4", "-4"),
        ("'fe80::1%lo'", "ipv4", "-4"),
    ],
)
def test_an_address_of_the_other_family_is_named_with_who_asks_for_it(
    file: Path, address: str, family: str, option: str
) -> None:
    keys = f"listen: 8000, address: {address}, port: 443"
    shown = f"the text {address}" if "'" in address else f"'{address}'"
    expected = "asks for the other family; expected a host name or an address of that family"
    assert error_of(file, f"\n- {{{keys}, family: {family}}}") == (
        f"line 3: address is {shown}, and family: {family} {expected}"
    )
    options = ServiceOptions(family=socket.AF_INET6 if option == "-6" else socket.AF_INET)
    assert error_of(file, f"\n- {{{keys}}}", options) == (
        f"line 3: address is {shown}, and {option} {expected}"
    )
    other = "ipv4" if family == "ipv6" else "ipv6"
    assert service(file, f"{keys}, family: {other}", options).endpoint.port == 443


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 2: services is nothing; expected a list of services"),
        (" ~", "line 2: services is '~'; expected a list of services"),
        (" yes", "line 2: services is 'yes'; expected a list of services"),
        (" []", "line 2: services is an empty list; expected at least one service"),
        (f" {{{GOOD}}}", "line 2: services is a mapping; expected a list of services"),
        (f"\n  {GOOD.replace(', ', chr(10) + '  ')}", "line 3: services is a mapping; expected a"),
        (
            "\n- 8000",
            "line 3: service is '8000'; expected {listen: PORT, address: HOST, port: N}",
        ),
        ("\n-", "line 3: service is nothing; expected {listen: PORT, address: HOST, port: N}"),
        ("\n- - a", "line 3: service is a list; expected {listen: PORT, address: HOST, port: N}"),
        ("\n- {}", "line 3: service without listen; expected listen, address and port"),
        (
            "\n- {address: a, port: 1}",
            "line 3: service without listen; expected listen, address and port",
        ),
        (
            "\n- {listen: 8000, port: 1}",
            "line 3: service without address; expected listen, address and port",
        ),
        (
            "\n- {listen: 8000, address: a}",
            "line 3: service without port; expected listen, address and port",
        ),
        (
            f"\n- {{{GOOD}, listen: 8001}}",
            "line 3: a second listen in one service; expected one",
        ),
        (
            f"\n- {{{GOOD},\n   idle_timeout: 1,\n   idle_timeout: 1}}",
            "line 5: a second idle_timeout in one service; expected one",
        ),
        (f"\n- {{{GOOD}, worker: 4}}", f"line 3: unknown key 'worker'; expected one of {KEYS}"),
        (
            f"\n- {{{GOOD}, allow-cid: [1]}}",
            f"line 3: unknown key 'allow-cid'; expected one of {KEYS}",
        ),
        (f"\n- {{{GOOD}, Port: 1}}", f"line 3: unknown key 'Port'; expected one of {KEYS}"),
        (f"\n- {{{GOOD}, ? [a] : 1}}", f"line 3: unknown key a list; expected one of {KEYS}"),
        (f"\n- {{<<: &a {{}}, {GOOD}}}", f"line 3: unknown key '<<'; expected one of {KEYS}"),
        (f"\n- {{{GOOD}, ~: 1}}", f"line 3: unknown key '~'; expected one of {KEYS}"),
        (
            f"\n- {{{GOOD}}}\nservices:\n- {{{GOOD}}}",
            "line 4: a second 'services:'; put all services in one list",
        ),
    ],
)
def test_services_of_another_shape_are_explained(file: Path, content: str, said: str) -> None:
    assert error_of(file, content).startswith(said)


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


PROJECT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"^(?:# |    )services:((?:\n(?:# |    )[- ] .*)+)", re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/install.md",
        "docs/migrating.md",
        "docs/reference.md",
        "docs/vsock-proxy.yaml.5.rst",
        "etc/nitro_enclaves/vsock-proxy.yaml",
    ],
)
def test_what_is_shown_as_an_example_may_stand_in_the_file(file: Path, name: str) -> None:
    examples = EXAMPLE.findall((PROJECT / name).read_text(encoding="utf-8"))
    assert examples
    for example in examples:
        content = re.sub("^(# |    )", "", example, flags=re.MULTILINE)
        assert len(services(file, content)) == content.count("listen: ")


def many(count: int, more: str = "") -> str:
    return "".join(
        f"\n- {{listen: {number}, address: a.example, port: 443{more}}}"
        for number in range(1000, 1000 + count)
    )


def test_there_may_be_a_thousand_services_and_no_more(file: Path) -> None:
    assert len(services(file, many(1000))) == 1000
    assert error_of(file, many(1001)) == "line 1003: more than 1000 services"
    assert error_of(file, f"\n- &a {{{GOOD}}}" + "\n- *a" * 20_000) == (
        "line 3: more than 1000 services"
    )


def test_all_pools_together_have_no_more_workers_than_one_may_have(file: Path) -> None:
    assert services(file, many(10, ", workers: 1000"), workers=10_000)
    assert error_of(file, many(11, ", workers: 1000")) == (
        "line 13: workers is '1000', which makes 11000 with those of the services before it; "
        "expected at most 10000 in all"
    )
    shared = many(1, ", workers: 9000") + "\n- {listen: 8000, address: a, port: 1}"
    assert services(file, shared, workers=1000)
    assert (
        "makes 10001 with those of the services before it and the 1001 that others share (-w)"
        in error_of(file, shared, workers=1001)
    )


SLOW = {
    "one long list of CIDs again and again": (
        "\n- {listen: 8000, address: a, port: 1, allow_cid: &c [" + "16, " * 45_000 + "]}"
    )
    + "".join(
        f"\n- {{listen: {number}, address: a, port: 1, allow_cid: *c}}"
        for number in range(9000, 9400)
    ),
    "one long text for a list of CIDs": many(900, f", allow_cid: {'1' * 900}"),
    "one long address again and again": (
        f"\n- {{listen: 8000, address: &a {'x.' * 400_000}, port: 1}}"
    )
    + "".join(f"\n- {{listen: {number}, address: *a, port: 1}}" for number in range(9000, 9900)),
    "international names": many(999).replace("a.example", "ü." * 18 + "e"),
    "many keys": "\n- {" + "listen: 8000, " * 20_000 + "}",
    "long numbers": f"\n- {{listen: {'1' * 900_000}, address: a, port: 1}}",
}


@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW.keys())
def test_services_take_less_than_a_second_whatever_is_in_them(file: Path, content: str) -> None:
    began = time.process_time()
    with contextlib.suppress(ConfigurationError):
        services(file, content)
    assert time.process_time() - began < (1 if yaml.__with_libyaml__ else 10) * SLOWNESS


def test_too_many_cids_in_all_are_refused(file: Path) -> None:
    assert error_of(file, SLOW["one long list of CIDs again and again"]) == (
        "line 3: more than 50000 CIDs in all services"
    )


def test_without_services_both_ways_to_serve_are_told(file: Path) -> None:
    file.write_text("allowlist: []\n")
    with pytest.raises(UsageError) as caught:
        loading.load(str(file)).services(DEFAULTS, 4)
    assert str(caught.value) == (
        "there is nothing to serve: give <local_port> <remote_addr> <remote_port>, or list "
        f"services in {file} (--config), 'services:' beside 'allowlist:'"
    )


@pytest.mark.parametrize(
    "content", ["services: 7", "services: [{listen: 0}]", "services: []\nservices: []"]
)
def test_services_that_are_not_asked_for_are_not_looked_at(
    file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(f"{content}\nallowlist:\n- {{address: a.example, port: 1}}\n")
    with caplog.at_level(logging.WARNING):
        assert loading.load(str(file)).allowlist.permits_name("a.example", 1)
    assert caplog.messages == []


def test_a_file_with_services_must_be_yaml_all_the_same(file: Path) -> None:
    file.write_text("allowlist: []\nservices: [\n")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        loading.load(str(file))


@pytest.mark.parametrize("address", ["kms.{region}.{domain}", "{region}.example"])
def test_a_placeholder_that_lacks_its_quotes_is_asked_about(file: Path, address: str) -> None:
    file.write_text(f"services:\n- {{listen: 8000, address: {address}, port: 443}}\n")
    with pytest.raises(ConfigurationError) as caught:
        loading.load(str(file))
    assert f"{file}, line 2: not valid YAML: " in str(caught.value)
    assert str(caught.value).endswith("; an address with {region} or {domain} must be in quotes")


def test_unknown_keys_beside_the_services_are_warned_of(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert services(file, f"\n- {{{GOOD}}}\nservice: 1")
    assert caplog.messages == [f"file {file}, line 4: unknown key 'service' ignored"]
