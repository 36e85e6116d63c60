"""What a host is: an address in any of its spellings, a name, or neither.

A text that is neither is refused at once. The C library would silently turn `127.1` or `16` into an
address, and would look up `a..x` again and again without success.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Optional, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

LONGEST_NAME = 253
LONGEST_LABEL = 63
# Letters, digits and hyphens (RFC 1123, 2.1), and the underscore, which some names have. The C
# library does not look up a name that begins with a hyphen (res_hnok() in
# resolv/res-name-checking.c).
NAME = re.compile(rf"(?!-)[a-z0-9_-]{{1,{LONGEST_LABEL}}}(\.[a-z0-9_-]{{1,{LONGEST_LABEL}}})*")
# 'Ends in a number' (WHATWG's URL Standard): then a text is an address or nothing.
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# dev_valid_name() in net/core/dev.c; a name has 15 bytes at most.
ZONE = re.compile(r"[^\s/%:]{1,15}")


class NoHost(Exception):
    """The text is no host name. reason: why; hint: what the author may have meant."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(f"{reason}; {hint}" if hint else reason)
        self.reason = reason


def parse_address(host: str) -> Optional[Address]:
    """The address that a text means; None if it is no address. IPv4 mapped into IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    zone = address.scope_id
    if zone is None:
        return address.ipv4_mapped or address
    return None if address.ipv4_mapped or not is_zone(zone) else address


def is_zone(text: str) -> bool:
    """Whether a network interface can have this name or number."""
    return bool(ZONE.fullmatch(text)) and text.isprintable()


def normal_name(host: str) -> str:
    """A host name in the one form for comparison: lower case, no final dot, IDNA (RFC 5890).

    Raises NoHost if there cannot be such a name.
    """
    # This check comes first, because the time of IDNA grows with the square of the length.
    if len(host) > LONGEST_NAME + 1:
        raise NoHost(f"is longer than the {LONGEST_NAME} characters of a host name")
    name = _ascii(host).lower()
    if name.endswith("."):
        name = name[:-1]
    if not name:
        raise NoHost("is no host name")
    if len(name) > LONGEST_NAME:
        raise NoHost(f"is longer than the {LONGEST_NAME} characters of a host name")
    if not NAME.fullmatch(name):
        raise _malformed(name)
    if NUMBER.fullmatch(name.rpartition(".")[2]):
        raise _number(name)
    return name


def check_host(host: str) -> None:
    """Raise NoHost if the text is neither an address nor a possible name."""
    if parse_address(host) is None:
        normal_name(host)


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise NoHost("is no host name, nor one that IDNA can write in ASCII") from None


def _malformed(name: str) -> NoHost:
    labels = name.split(".")
    if "://" in name:
        return NoHost("is a URL", "give the host name alone")
    if name.startswith("[") or name.endswith("]"):
        return NoHost("is no host name", "an IPv6 address is written without brackets")
    if name.startswith("/"):
        return NoHost("is no host name", "a Unix socket is written unix:PATH")
    if re.fullmatch(r"[^:]+:[0-9]+", name):
        return NoHost("is no host name", "the port is given apart from it")
    if not all(labels):
        return NoHost("is no host name: there is nothing before or between its dots")
    if any(len(label) > LONGEST_LABEL for label in labels):
        return NoHost(f"is no host name: more than {LONGEST_LABEL} characters without a dot")
    if name.startswith("-"):
        return NoHost("is no host name: it begins with a hyphen")
    return NoHost("is no host name")


def _number(name: str) -> NoHost:
    reason = "is a number" if name.isdigit() else "is no host name, because it ends in a number"
    meant = ["a guest is written vsock:CID"] if name.isdigit() else []
    try:
        address = socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        address = "0.0.0.0"
    # No endpoint is in 0.0.0.0/8 (RFC 1122, 3.2.1.3).
    if not address.startswith("0."):
        meant.append(f"as an IP address that is {address}")
    return NoHost(reason, "; ".join(meant))
