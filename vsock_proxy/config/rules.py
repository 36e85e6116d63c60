"""What the value of an option may be, on the command line and in the file.

Each rule stands in one place. So both take the same values, and both say in the same words what
they expect. The rules know only the text. The caller knows where it stands, and says so.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import PurePosixPath

from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.settings import UNIX_PREFIX, MetricsAddress

# sun_path holds 108 bytes, the last of them NUL (unix(7)).
LONGEST_PATH = 107
MAX_SECONDS = 1_000_000.0
# int() and float() would take "1_000", " 8000 ", "nan" and digits of other scripts.
DIGITS = re.compile(r"[0-9]{1,10}")
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}")
BROADCAST = "255.255.255.255"
LOCAL_ADDRESS = (
    "an IP address of this machine, with %INTERFACE if it is link-local, or 0.0.0.0 or :: for all"
)
METRICS_ADDRESS = (
    "HOST:PORT with an IP address of this machine, in brackets if it is IPv6, or PORT alone for "
    "that of 127.0.0.1, or unix:PATH"
)
LOOPBACK = "127.0.0.1"
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


class Unfit(Exception):
    """The value does not fit; the text says what is expected."""


@dataclass(frozen=True)
class Integer:
    """The integers from one to another."""

    minimum: int
    maximum: int

    def parse(self, text: str) -> int:
        """Raises Unfit."""
        if DIGITS.fullmatch(text) and self.minimum <= int(text) <= self.maximum:
            return int(text)
        raise Unfit(f"an integer from {self.minimum} to {self.maximum}")


@dataclass(frozen=True)
class Seconds:
    """A time between a shortest and a longest one."""

    minimum: float = 0.0

    def parse(self, text: str) -> float:
        """Raises Unfit."""
        if not SECONDS.fullmatch(text):
            raise Unfit("a number of seconds such as 10 or 0.5")
        if not self.minimum <= float(text) <= MAX_SECONDS:
            raise Unfit(f"a number of seconds from {self.minimum:g} to {MAX_SECONDS:.0f}")
        return float(text)


VSOCK_PORT = Integer(4, 0xFFFFFFFE)
# A port that somebody else listens on. To listen here, a port must be at least 4.
VSOCK_REMOTE_PORT = Integer(0, 0xFFFFFFFE)
TCP_PORT = Integer(1, 65535)
CID = Integer(0, 0xFFFFFFFE)
INTERFACE = Integer(1, 0x7FFFFFFF)
WORKERS = Integer(1, 10_000)
CONNECT_TIMEOUT = Seconds(0.001)
IDLE_TIMEOUT = Seconds()
RESOLVE_INTERVAL = Seconds(0.1)
DRAIN_TIMEOUT = Seconds()


def local_address(text: str) -> str:
    """An address to listen on over TCP, in the one form for comparison. Raises Unfit."""
    address = parse_address(text)
    if address is None or address.is_multicast or str(address) == BROADCAST:
        raise Unfit(LOCAL_ADDRESS)
    zone = getattr(address, "scope_id", None)
    if zone is None:
        return str(address)
    if not address.is_link_local:
        # The kernel ignores the zone of other addresses, and would let in clients of any interface.
        raise Unfit(LOCAL_ADDRESS)
    return f"{str(address).partition('%')[0]}%{_interface(zone)}"


def _interface(zone: str) -> str:
    """The zone as the name of its interface, if it is the number of one."""
    try:
        return socket.if_indextoname(INTERFACE.parse(zone))
    except (Unfit, OSError):
        return zone


def metrics_address(text: str) -> MetricsAddress:
    """Where to serve metrics. Raises Unfit."""
    if text.startswith(UNIX_PREFIX):
        path = text[len(UNIX_PREFIX) :]
        check_path(path)
        return MetricsAddress(path=path)
    host, _, port = text.rpartition(":")
    try:
        return MetricsAddress(_metrics_host(host), TCP_PORT.parse(port))
    except Unfit:
        raise Unfit(METRICS_ADDRESS) from None


def _metrics_host(text: str) -> str:
    if text in ("", "localhost"):
        return LOOPBACK
    is_bracketed = text.startswith("[") and text.endswith("]")
    address = local_address(text[1:-1] if is_bracketed else text)
    if is_bracketed != (":" in address):
        raise Unfit(METRICS_ADDRESS)
    return address


def port_to_listen_on(over_tcp: bool) -> Integer:
    """The rule for a port to listen on."""
    return TCP_PORT if over_tcp else VSOCK_PORT


def check_uds_path(path: str, port: int) -> None:
    """Check that PATH_PORT can be a Unix socket. Raises Unfit."""
    if not path or not _is_path(f"{path}_{port}"):
        raise Unfit(f"a path that with _PORT is at most {LONGEST_PATH} bytes")


def check_path(path: str) -> None:
    """Check that a Unix socket can have this path. Raises Unfit."""
    if not path or not _is_path(path):
        raise Unfit(f"a path of at most {LONGEST_PATH} bytes")


def normal_path(path: str) -> str:
    """A path in the one form for comparison. Does not look at links."""
    # POSIX lets two slashes at the beginning mean another root than one. Linux does not.
    return str(PurePosixPath(f"/{path.lstrip('/')}" if path.startswith("//") else path))


def _is_path(path: str) -> bool:
    try:
        return "\0" not in path and len(os.fsencode(path)) <= LONGEST_PATH
    except UnicodeEncodeError:
        # The encoding of this system cannot write every file name.
        return False
