"""The values of a service: what is no number, no host, no path is named with its line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.loading import GOOD, error_of, service, services
from vsock_proxy.settings import ServiceOptions

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

SECONDS = "a number of seconds such as 10 or 0.5"

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
