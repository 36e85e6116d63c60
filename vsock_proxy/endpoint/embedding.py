"""The IPv4 addresses that an IPv6 address may lead to.

The RFCs have many ways to write an IPv4 address into an IPv6 address. The proxy cannot see which of
them a router on the way applies, so it assumes all of them. It cannot know prefixes that a network
has chosen for itself (RFC 6052, RFC 5969).
"""

from __future__ import annotations

import ipaddress
from typing import Iterator, Tuple

from vsock_proxy.config.hostnames import Address

# By prefix: how many bits lie below the IPv4 address.
PREFIXES = tuple(
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::/96", 0),  # IPv4-compatible (RFC 4291, 2.5.5.1)
        ("::ffff:0:0/96", 0),  # IPv4-mapped (RFC 4291, 2.5.5.2)
        ("::ffff:0:0:0/96", 0),  # IPv4-translated (RFC 2765, 2.1)
        ("64:ff9b::/96", 0),  # NAT64 (RFC 6052, 2.1)
        ("64:ff9b:1::/48", 0),  # NAT64 of a network's own (RFC 8215), in the form of a /96
        ("2002::/16", 80),  # 6to4 (RFC 3056, 2)
        ("2001::/32", 64),  # Teredo's server (RFC 4380, 4)
    )
)
TEREDO = ipaddress.IPv6Network("2001::/32")
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
# The lengths of RFC 6052, 2.2, that a prefix within LOCAL_NAT64 can have besides 96. The address
# follows the prefix, except that bits 64 to 71 are zero.
NAT64_PREFIX_LENGTHS = (48, 56, 64)
# By the fixed bits of the interface identifier: how many bits lie below the IPv4 address.
IDENTIFIERS = (
    (0x00005EFE, 32, 0),  # ISATAP (RFC 5214, 6.1)
    (0x02005EFE, 32, 0),  # ISATAP, where the IPv4 address is unique
    (0x00000000, 32, 0),  # 6over4 (RFC 2529, 4)
    (0x0000, 16, 16),  # MAP-E, MAP-T and lightweight 4over6 (RFC 7597, 6)
    (0x0300, 16, 16),  # 4rd (RFC 7600, 4.5)
)
LOW_32 = 0xFFFFFFFF


def embedded(ip: Address) -> Tuple[ipaddress.IPv4Address, ...]:
    """Every IPv4 address that this IPv6 address may stand for; none for an IPv4 address."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ()
    return tuple(ipaddress.IPv4Address(number & LOW_32) for number in _numbers(ip))


def _numbers(ip: ipaddress.IPv6Address) -> Iterator[int]:
    """The bits of these addresses, with other bits above them."""
    number = int(ip)
    for network, shift in PREFIXES:
        if ip in network:
            yield number >> shift
    if ip in TEREDO:
        # The client's address, with every bit inverted.
        yield ~number
    if ip in LOCAL_NAT64:
        for length in NAT64_PREFIX_LENGTHS:
            yield _after_prefix(number, length)
    for value, size, shift in IDENTIFIERS:
        if number >> (64 - size) & ((1 << size) - 1) == value:
            yield number >> shift


def _after_prefix(number: int, length: int) -> int:
    # Without bits 64 to 71, 120 are left.
    without = (number >> 64) << 56 | number & ((1 << 56) - 1)
    return without >> (120 - length - 32)
