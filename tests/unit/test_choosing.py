"""Which addresses a policy permits, and in which order they are tried: tables, without DNS."""

from __future__ import annotations

import ipaddress
import socket
from typing import List, Sequence

import pytest

from vsock_proxy.config.allowlist import Allowlist, Entry
from vsock_proxy.endpoint.addresses import Address, make_address
from vsock_proxy.endpoint.policy import Policy, literal_address, make_policy
from vsock_proxy.errors import UsageError
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

PORT = 443
A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
X, Y, Z = "2001:db8::1", "2001:db8::2", "2001:db8::3"
METADATA = "169.254.169.254"


def address(host: str) -> Address:
    """As DNS gives it; what follows % is the interface's index."""
    host, _, zone = host.partition("%")
    if ":" in host:
        return make_address(socket.AF_INET6, (host, PORT, 0, int(zone or 0)))
    return make_address(socket.AF_INET, (host, PORT))


def policy(host: str, *networks: str, by_name: bool = False, port: int = PORT) -> Policy:
    """Of an allowlist of these networks, with the zone behind %."""
    entries = []
    for network in networks:
        ip, _, zone = network.partition("%")
        entries.append(Entry(port, network=ipaddress.ip_network(ip), zone=zone or None))
    allowlist = Allowlist("allowlist.yaml", tuple(entries))
    return Policy(Endpoint(host, PORT), socket.AF_UNSPEC, by_name, allowlist)


PERMITTED = {
    "the address of an entry": (policy("name.test", A), A, True),
    "another address": (policy("name.test", A), B, False),
    "an address in a network": (policy("name.test", "10.0.0.0/24"), C, True),
    "an address beside a network": (policy("name.test", "10.0.0.0/31"), C, False),
    "an address in the second of two networks": (policy("name.test", "10.1.0.0/16", A), A, True),
    "an IPv6 address in a network": (policy("name.test", "2001:db8::/64"), X, True),
    "IPv4 in a network of IPv6 alone": (policy("name.test", "::/0"), A, False),
    "IPv6 in a network of IPv4 alone": (policy("name.test", "0.0.0.0/0"), X, False),
    "an entry for another port": (policy("name.test", A, port=80), A, False),
    "no entry": (policy("name.test"), A, False),
    "any address of a name on the list": (policy("name.test", by_name=True), A, True),
    "credentials, by name": (policy("name.test", by_name=True), METADATA, False),
    "credentials, by address": (policy("name.test", METADATA), METADATA, False),
    "link-local, by address": (policy("name.test", "fe80::1"), "fe80::1%1", False),
}


@pytest.mark.parametrize(("judge", "host", "permitted"), PERMITTED.values(), ids=PERMITTED.keys())
def test_an_answer_of_dns_is_judged_by_the_list(judge: Policy, host: str, permitted: bool) -> None:
    assert judge.permits(address(host)) is permitted


ENDPOINTS = {
    "on the list": (policy(A, A), True),
    "in a network": (policy(A, "10.0.0.0/8"), True),
    "not on the list": (policy(A, B), False),
    "for another port": (policy(A, A, port=80), False),
    "credentials": (policy(METADATA, METADATA), True),
    "in its zone": (policy("fe80::1%eth0", "fe80::1%eth0"), True),
    "in another zone": (policy("fe80::1%eth1", "fe80::1%eth0"), False),
    "in any zone": (policy("fe80::1%eth1", "fe80::1"), True),
    "IPv4 mapped into IPv6": (policy("::ffff:10.0.0.1", A), True),
    "a name": (policy("name.test", "0.0.0.0/0", "::/0"), False),
}


@pytest.mark.parametrize(("judge", "permitted"), ENDPOINTS.values(), ids=ENDPOINTS.keys())
def test_an_endpoint_given_as_an_address_is_judged_by_the_list(
    judge: Policy, permitted: bool
) -> None:
    assert judge.permits_literal() is permitted


TURNS = {
    "nothing": ([], []),
    "one": ([A], [A]),
    "one family keeps its order": ([B, A, C], [B, A, C]),
    "families take turns, the first first": ([A, B, X, Y], [A, X, B, Y]),
    "IPv6 first": ([X, Y, A, B], [X, A, Y, B]),
    "one of the other": ([A, B, C, X], [A, X, B, C]),
    "more of the other": ([A, X, Y, Z], [A, X, Y, Z]),
    "turns already": ([A, X, B, Y], [A, X, B, Y]),
    "what is forbidden has no turn": ([METADATA, X, A, B], [X, A, B]),
    "nothing but what is forbidden": ([METADATA, "fe80::1%1"], []),
    "mapped is IPv4": (["::ffff:10.0.0.1", B, X], [A, X, B]),
}


@pytest.mark.parametrize(("answers", "tried"), TURNS.values(), ids=TURNS.keys())
def test_the_permitted_addresses_of_both_families_take_turns(
    answers: Sequence[str], tried: List[str]
) -> None:
    chosen = policy("name.test", by_name=True).choose(map(address, answers))
    assert [one.sockaddr[0] for one in chosen] == tried


def test_what_the_list_does_not_permit_has_no_turn() -> None:
    chosen = policy("name.test", A, Y).choose(map(address, [X, Y, A, B]))
    assert [one.sockaddr[0] for one in chosen] == [Y, A]


@pytest.mark.parametrize("host", ["fe80::1%lo", METADATA])
def test_an_endpoint_given_as_an_address_is_what_is_connected_to(host: str) -> None:
    # Nobody but the operator has said so: the ranges that DNS must not lead to are no matter.
    known = (address(host.replace("%lo", "%1")),)
    assert policy(host).choose(known) == known


def entry(text: str) -> Entry:
    if text.startswith("*"):
        return Entry(PORT, suffix=text[1:])
    return Entry(PORT, name=text)


NAMES = {
    "the name": ("kms.test", "kms.test", True),
    "the name in capitals": ("KMS.Test", "kms.test", True),
    "the name with the root's dot": ("kms.test.", "kms.test", True),
    "another name": ("s3.test", "kms.test", False),
    "below a wildcard": ("kms.test", "*.test", True),
    "the domain of a wildcard": ("test", "*.test", False),
    "an address": (A, "kms.test", False),
}


@pytest.mark.parametrize(("host", "listed", "any_address"), NAMES.values(), ids=NAMES.keys())
def test_a_name_on_the_list_may_have_any_address(host: str, listed: str, any_address: bool) -> None:
    settings = ServiceSettings(8000, Endpoint(host, PORT), ServiceOptions(socket.AF_INET6))
    made = make_policy(settings, Allowlist("allowlist.yaml", (entry(listed),)))
    assert made.any_address is any_address
    assert (made.endpoint, made.family) == (settings.endpoint, socket.AF_INET6)


LITERALS = {
    "a name": ("name.test", socket.AF_UNSPEC, []),
    "IPv4": (A, socket.AF_UNSPEC, [A]),
    "IPv4, as asked for": (A, socket.AF_INET, [A]),
    "IPv6": ("2001:DB8:0::1", socket.AF_UNSPEC, [X]),
    "IPv6, as asked for": (X, socket.AF_INET6, [X]),
}


@pytest.mark.parametrize(("host", "family", "known"), LITERALS.values(), ids=LITERALS.keys())
def test_an_endpoint_given_as_an_address_is_known_at_once(
    host: str, family: socket.AddressFamily, known: List[str]
) -> None:
    settings = ServiceSettings(8000, Endpoint(host, PORT), ServiceOptions(family))
    assert [one.sockaddr[0] for one in literal_address(settings)] == known


FAULTS = {
    "IPv6 where IPv4 is asked for": (X, socket.AF_INET, "is not an address of the family that -4"),
    "IPv4 where IPv6 is asked for": (A, socket.AF_INET6, "is not an address of the family that -6"),
    "a zone that is no interface": ("fe80::1%none", socket.AF_UNSPEC, "what follows % is no"),
}


@pytest.mark.parametrize(("host", "family", "text"), FAULTS.values(), ids=FAULTS.keys())
def test_an_address_that_cannot_be_used_is_a_usage_error(
    host: str, family: socket.AddressFamily, text: str
) -> None:
    settings = ServiceSettings(8000, Endpoint(host, PORT), ServiceOptions(family))
    with pytest.raises(UsageError, match=text):
        literal_address(settings)
