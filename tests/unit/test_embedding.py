"""Every way of an RFC to write an IPv4 address into an IPv6 one is known, and refused from DNS."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from vsock_proxy.config.allowlist import Allowlist, Entry
from vsock_proxy.endpoint.addresses import make_address
from vsock_proxy.endpoint.embedding import embedded
from vsock_proxy.endpoint.policy import Policy
from vsock_proxy.settings import Endpoint

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

# 192.0.2.33 is c000:0221, which is the example of RFC 6052, 2.4.
FORMS = {
    "IPv4-compatible": "::192.0.2.33",
    "IPv4-mapped": "::ffff:192.0.2.33",
    "IPv4-translated": "::ffff:0:192.0.2.33",
    "NAT64": "64:ff9b::192.0.2.33",
    "local NAT64, a prefix of 48": "64:ff9b:1:c000:2:2100::",
    "local NAT64, a prefix of 56": "64:ff9b:1:3c0:0:221::",
    "local NAT64, a prefix of 64": "64:ff9b:1:344:c0:2:2100:0",
    "local NAT64, a prefix of 96": "64:ff9b:1:344::192.0.2.33",
    "6to4": "2002:c000:221::1",
    "Teredo's server": "2001:0:c000:221:8000:63bf:3fff:fdd2",
    "Teredo's client": "2001:0:4136:e378:8000:63bf:3fff:fdde",
    "ISATAP": "2001:db8::5efe:192.0.2.33",
    "ISATAP, unique": "2001:db8::200:5efe:192.0.2.33",
    "6over4": "2001:db8::192.0.2.33",
    "MAP": "2001:db8:12:3400:0:c000:221:34",
    "4rd": "2001:db8:0:1:300:c000:221:34",
}
METADATA = {
    "IPv4": "169.254.169.254",
    "link-local": "169.254.0.1",
    "ECS": "169.254.170.2",
    "EKS": "169.254.170.23",
    "EKS, IPv6": "fd00:ec2::23",
    "EC2, IPv6": "fd00:ec2::254",
    "IPv6 link-local": "fe80::1",
    "Alibaba": "100.100.100.200",
    "Oracle": "192.0.0.192",
    "Oracle, IPv6": "fd00:c1::a9fe:a9fe",
    "Azure": "168.63.129.16",
    "Google, IPv6": "fd20:ce::254",
    "Scaleway, IPv6": "fd00:42::42",
    "mapped": "::ffff:169.254.169.254",
    "compatible": "::169.254.169.254",
    "translated": "::ffff:0:169.254.169.254",
    "NAT64": "64:ff9b::169.254.169.254",
    "local NAT64, 48": "64:ff9b:1:a9fe:a9:fe00::",
    "local NAT64, 56": "64:ff9b:1:a9:fe:a9fe::",
    "local NAT64, 64": "64:ff9b:1:0:a9:fea9:fe00:0",
    "local NAT64, 96": "64:ff9b:1::169.254.169.254",
    "6to4": "2002:a9fe:a9fe::1",
    "Teredo's server": "2001:0:a9fe:a9fe::1",
    "Teredo's client": "2001:0:4136:e378:8000:63bf:5601:5601",
    "ISATAP": "2001:db8::5efe:169.254.169.254",
    "ISATAP, unique": "2001:db8::200:5efe:169.254.169.254",
    "6over4": "2001:db8::169.254.169.254",
    "MAP": "2001:db8::a9fe:a9fe:34",
    "6to4 of Azure": "2002:a83f:8110::",
    "NAT64 of Alibaba": "64:ff9b::100.100.100.200",
    "NAT64 of Oracle": "64:ff9b::192.0.0.192",
}
ORDINARY = (
    "127.0.0.1",
    "10.0.0.1",
    "100.100.100.201",
    "192.0.0.191",
    "168.63.129.17",
    "::1",
    "fd00:ec2::253",
    "2600:1f14:1a2b:3c00:a9fe:a9fe:1:1",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1:808:8:800::",
    "2002:808:808::1",
)


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_the_ipv4_address_in_an_ipv6_one_is_found(text: str) -> None:
    ip = ipaddress.IPv6Address(text)
    assert ipaddress.IPv4Address("192.0.2.33") in embedded(ip)


def test_there_is_none_in_others() -> None:
    assert embedded(ipaddress.IPv4Address("192.0.2.33")) == ()
    assert embedded(ipaddress.IPv6Address("2600:1f14:1a2b:3c00:1:2:c000:221")) == ()


def policy(*, any_address: bool) -> Policy:
    entries = (
        Entry(443, network=ipaddress.IPv4Network("0.0.0.0/0")),
        Entry(443, network=ipaddress.IPv6Network("::/0")),
    )
    allowlist = Allowlist("allowlist.yaml", entries)
    return Policy(Endpoint("endpoint.test", 443), socket.AF_UNSPEC, any_address, allowlist)


@pytest.mark.parametrize("any_address", [True, False], ids=["by name", "by address"])
@pytest.mark.parametrize("text", METADATA.values(), ids=METADATA.keys())
def test_an_answer_that_leads_to_credentials_is_refused(text: str, any_address: bool) -> None:
    (found,) = socket.getaddrinfo(text, 443, type=socket.SOCK_STREAM)
    address = make_address(found[0], found[4])
    assert not policy(any_address=any_address).permits(address)


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_answer_is_permitted(text: str) -> None:
    (found,) = socket.getaddrinfo(text, 443, type=socket.SOCK_STREAM)
    address = make_address(found[0], found[4])
    assert policy(any_address=True).permits(address)
    assert policy(any_address=False).permits(address)
