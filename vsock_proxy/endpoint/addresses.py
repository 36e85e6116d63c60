"""The endpoint's addresses, in shared memory: written by the resolver, read by every worker.

A worker asks at each connection, so asking costs one look at a version number. There are no locks,
and the writer may be killed between any two stores:

- There are two halves, and the version number says which one counts. The writer fills the other
  one and then stores the next version number. It never writes to the list that counts.
- A reader copies a half once and checks the copy. The copy holds its own version number and a
  checksum of all of it. If these do not agree, the reader looks again: two more lists have come in
  between, or the stores of another processor are not visible yet (Graviton).

The table also counts the resolver's lookups by their results.

A pair of connected sockets wakes processes. The first list wakes the workers that wait for one. A
worker that cannot connect wakes the resolver. It only matters whether there is a byte. Two pipes
would take twice as many descriptors, and each process holds those of all services.
"""

from __future__ import annotations

import binascii
import ipaddress
import mmap
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Iterable, List, Sequence, Tuple, Union

from vsock_proxy.settings import format_address

MAX_ADDRESSES = 64
CELL = 8
# Two cells for the whole table, those of the lookups, then two halves.
VERSION, PREFERRED, RESOLVED, UNRESOLVED, NOT_PERMITTED, RESOLVED_AT, HALVES = range(7)
# Cells of a half: its own version number and so on, then a fixed number for each address.
OWN_VERSION, COUNT, CHECKSUM, ENTRIES = range(4)
ENTRY = 3
HALF = ENTRIES + MAX_ADDRESSES * ENTRY
SIZE = HALVES + 2 * HALF
# A try fails only if two more lists have come during it, and each of them takes a lookup.
TRIES = 100
# Bytes; more than the socket holds if they are sent one by one.
ALL_NUDGES = 65536
LOW_64 = (1 << 64) - 1
# ::ffff:0:0/96 (RFC 4291, 2.5.5.2).
MAPPED = 0xFFFF << 32
SCOPE_BITS = 32
INDEX_BITS = 8

SockAddr = Union[Tuple[str, int], Tuple[str, int, int, int]]


@dataclass(frozen=True)
class Address:
    """One address of the endpoint; bits are its 128 bits, IPv4 mapped into IPv6."""

    family: int
    sockaddr: SockAddr
    bits: Tuple[int, int]

    @property
    def scope(self) -> int:
        return self.sockaddr[3] if len(self.sockaddr) == 4 else 0

    def __str__(self) -> str:
        return format_address(self.sockaddr[0], self.sockaddr[1])


def make_address(family: int, sockaddr: Sequence[Any]) -> Address:
    """Convert an answer of getaddrinfo(). Raises ValueError if it is neither IPv4 nor IPv6."""
    host, port, *more = sockaddr
    if family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(host, str):
        # A Python without IPv6 returns numbers and bytes for it.
        raise ValueError(f"not an IP address: {sockaddr!r}")
    ip = ipaddress.ip_address(host.split("%")[0])
    number = int(ip) if ip.version == 6 else MAPPED | int(ip)
    bits = (number >> 64, number & LOW_64)
    if number >> 32 == MAPPED >> 32:
        # IPv4 mapped into IPv6 is IPv4, to the kernel too.
        return Address(socket.AF_INET, (host_of(bits), port), bits)
    scope = more[1] if len(more) == 2 else 0
    return Address(socket.AF_INET6, (host_of(bits), port, 0, scope), bits)


def host_of(bits: Tuple[int, int]) -> str:
    """The host for 128 bits; IPv4 mapped into IPv6 as IPv4."""
    address = ipaddress.IPv6Address(bits[0] << 64 | bits[1])
    return str(address.ipv4_mapped or address)


@dataclass(frozen=True)
class Lookups:
    """How lookups have ended.

    resolved, unresolved, not_permitted: how many gave an address, gave no answer, or gave only
    addresses that are not permitted.
    resolved_at: when a lookup last gave an address, by time.time_ns(); 0: never.
    """

    resolved: int = 0
    unresolved: int = 0
    not_permitted: int = 0
    resolved_at: int = 0

    def plus(self, other: Lookups) -> Lookups:
        return Lookups(
            self.resolved + other.resolved,
            self.unresolved + other.unresolved,
            self.not_permitted + other.not_permitted,
            max(self.resolved_at, other.resolved_at),
        )


class AddressTable:
    """The list as one process sees it. Made before the fork; each process caches for itself.

    published: a descriptor that is readable once there is a list.
    nudges: a descriptor that is readable while there are nudges to take.
    """

    def __init__(self, port: int) -> None:
        """port: the endpoint's."""
        self.port = port
        self._cells = memoryview(mmap.mmap(-1, SIZE * CELL)).cast("Q")
        self._version = 0
        self._preferred = 0
        self._addresses: Tuple[Address, ...] = ()
        self._ordered: Tuple[Address, ...] = ()
        self.published, self.nudges = (end.detach() for end in socket.socketpair())
        os.set_blocking(self.published, False)
        os.set_blocking(self.nudges, False)

    @property
    def descriptors(self) -> Tuple[int, int]:
        """Both descriptors."""
        return self.published, self.nudges

    def publish(self, addresses: Iterable[Address]) -> None:
        """Replace the list. Only one process at a time may do this."""
        cells = self._cells
        version = cells[VERSION] + 1
        start = _half(version)
        for index, value in enumerate(_half_of(version, tuple(addresses)[:MAX_ADDRESSES])):
            cells[start + index] = value
        cells[VERSION] = version
        self.announce()

    def withdraw(self) -> None:
        """Take all addresses away: a client that comes now waits for the next list."""
        self.publish(())
        try:
            os.read(self.published, 1)
        except BlockingIOError:
            pass

    def announce(self) -> None:
        """Wake the workers that wait for the first list, if it is there and nobody has done it.

        The resolver may have been killed right after it published; then its successor does it.
        """
        if not self._is_announced() and self.current():
            # This byte is never taken out.
            os.write(self.nudges, b"\0")

    def current(self) -> Tuple[Address, ...]:
        """The addresses, first the one that worked last; empty before the first publication."""
        cells = self._cells
        if cells[VERSION] != self._version or cells[PREFERRED] != self._preferred:
            self._refresh()
        return self._ordered

    def prefer(self, address: Address) -> None:
        """Make every worker begin with this address, as long as the list does not change."""
        if address in self._addresses:
            index = self._addresses.index(address)
            self._cells[PREFERRED] = self._version << INDEX_BITS | index

    def nudge(self) -> None:
        """Ask for another lookup, since no address answers."""
        try:
            os.write(self.published, b"\0")
        except (BlockingIOError, BrokenPipeError):
            # The resolver has been asked often enough, or there is none.
            pass

    def take_nudges(self) -> None:
        """Take the nudges that have come, before the lookup that they ask for."""
        try:
            os.read(self.nudges, ALL_NUDGES)
        except BlockingIOError:
            pass

    def count_lookup(self, result: int) -> None:
        """In the resolver: a lookup has ended, as RESOLVED, UNRESOLVED or NOT_PERMITTED."""
        self._cells[result] += 1
        if result == RESOLVED:
            self._cells[RESOLVED_AT] = time.time_ns()

    @property
    def lookups(self) -> Lookups:
        """The counts."""
        return Lookups(*self._cells[RESOLVED : RESOLVED_AT + 1])

    def close(self) -> None:
        """Close this process's descriptors, if it does not need this endpoint any more."""
        os.close(self.published)
        os.close(self.nudges)

    def _is_announced(self) -> bool:
        poll = select.poll()
        poll.register(self.published, select.POLLIN)
        return bool(poll.poll(0))

    def _refresh(self) -> None:
        for _ in range(TRIES):
            version = self._cells[VERSION]
            if version == self._version or self._take(version):
                break
        self._preferred = self._cells[PREFERRED]
        self._ordered = self._preferred_first()

    def _take(self, version: int) -> bool:
        """Take over the list of this version, if it can be read whole."""
        start = _half(version)
        end = start + ENTRIES + min(self._cells[start + COUNT], MAX_ADDRESSES) * ENTRY
        copy = tuple(self._cells[start:end])
        if copy[OWN_VERSION] != version or copy[CHECKSUM] != _checksum(copy):
            return False
        entries = copy[ENTRIES:]
        self._addresses = tuple(
            self._entry(*entries[index : index + ENTRY]) for index in range(0, len(entries), ENTRY)
        )
        self._version = version
        return True

    def _preferred_first(self) -> Tuple[Address, ...]:
        addresses = self._addresses
        index = self._preferred & ((1 << INDEX_BITS) - 1)
        if self._preferred >> INDEX_BITS != self._version or index >= len(addresses):
            return addresses
        return (addresses[index], *addresses[:index], *addresses[index + 1 :])

    def _entry(self, kind: int, high: int, low: int) -> Address:
        family, scope = kind >> SCOPE_BITS, kind & ((1 << SCOPE_BITS) - 1)
        host = host_of((high, low))
        if family == socket.AF_INET:
            return Address(family, (host, self.port), (high, low))
        return Address(family, (host, self.port, 0, scope), (high, low))


def _half(version: int) -> int:
    """Where the half of this version begins."""
    return HALVES + version % 2 * HALF


def _half_of(version: int, addresses: Tuple[Address, ...]) -> List[int]:
    """The cells of a half with these addresses."""
    half = [version, len(addresses), 0]
    for address in addresses:
        half += (address.family << SCOPE_BITS | address.scope, *address.bits)
    half[CHECKSUM] = _checksum(half)
    return half


def _checksum(half: Sequence[int]) -> int:
    """The checksum of all cells of a half except itself."""
    data = (*half[:CHECKSUM], *half[ENTRIES:])
    return binascii.crc32(struct.pack(f"{len(data)}Q", *data))
