"""The endpoint's addresses, in shared memory: written by the resolver, read by every worker.

A worker asks at each connection, so asking costs one look at a version number. There are no locks:
a checksum tells a half-written list, and the reader then keeps the one it has until it looks
again. Memory order is thus of no concern, on Graviton neither.
"""

from __future__ import annotations

import binascii
import ipaddress
import mmap
import os
import select
import socket
from dataclasses import dataclass
from typing import Iterable, Tuple, Union

from vsock_proxy.settings import format_address

MAX_ADDRESSES = 64
CELL = 8
# Cells of the header, then of each address.
VERSION, CHECKSUM, COUNT, PREFERRED = range(4)
HEADER = 4
FAMILY, HIGH, LOW, SCOPE = range(4)
ENTRY = 4
HALF = (1 << 64) - 1
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


def make_address(family: int, sockaddr: SockAddr) -> Address:
    """From what getaddrinfo() gives."""
    host = sockaddr[0].split("%")[0]
    if family == socket.AF_INET:
        number = int(ipaddress.IPv6Address(f"::ffff:{host}"))
    else:
        number = int(ipaddress.IPv6Address(host))
    return Address(family, sockaddr, (number >> 64, number & HALF))


def host_of(bits: Tuple[int, int]) -> str:
    """The host that 128 bits name, IPv4 as IPv4."""
    address = ipaddress.IPv6Address(bits[0] << 64 | bits[1])
    return str(address.ipv4_mapped or address)


class AddressTable:
    """The list as one process sees it. Made before the fork; each process caches for itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._map = mmap.mmap(-1, (HEADER + MAX_ADDRESSES * ENTRY) * CELL)
        self._cells = memoryview(self._map).cast("Q")
        self._version = 0
        self._preferred = 0
        self._addresses: Tuple[Address, ...] = ()
        self._ordered: Tuple[Address, ...] = ()
        # Readable from the first publication on; a byte that nobody ever takes out.
        self._published_reader, self._published_writer = os.pipe()

    def publish(self, addresses: Iterable[Address]) -> None:
        """Replace the list. Only one process at a time may do this."""
        chosen = tuple(addresses)[:MAX_ADDRESSES]
        cells = self._cells
        for index, address in enumerate(chosen):
            start = HEADER + index * ENTRY
            cells[start + FAMILY] = address.family
            cells[start + HIGH], cells[start + LOW] = address.bits
            cells[start + SCOPE] = address.scope
        cells[COUNT] = len(chosen)
        cells[CHECKSUM] = self._checksum(len(chosen))
        cells[VERSION] += 1
        if cells[VERSION] == 1:
            os.write(self._published_writer, b"\0")

    def current(self) -> Tuple[Address, ...]:
        """The addresses, the one that last worked first; empty before the first publication."""
        cells = self._cells
        if cells[VERSION] != self._version or cells[PREFERRED] != self._preferred:
            self._refresh()
        return self._ordered

    def prefer(self, address: Address) -> None:
        """Let every worker begin with this address, as long as the list stays as it is."""
        if address in self._addresses:
            index = self._addresses.index(address)
            self._cells[PREFERRED] = self._version << INDEX_BITS | index

    def wait(self, timeout: float) -> None:
        """Wait for the first publication, at most so many seconds."""
        poll = select.poll()
        poll.register(self._published_reader, select.POLLIN)
        poll.poll(int(timeout * 1000))

    def _refresh(self) -> None:
        version, count = self._cells[VERSION], self._cells[COUNT]
        if count > MAX_ADDRESSES or self._checksum(count) != self._cells[CHECKSUM]:
            return
        if version != self._version:
            self._addresses = tuple(self._entry(index) for index in range(count))
            self._version = version
        self._preferred = self._cells[PREFERRED]
        self._ordered = self._preferred_first()

    def _preferred_first(self) -> Tuple[Address, ...]:
        addresses = self._addresses
        index = self._preferred & ((1 << INDEX_BITS) - 1)
        if self._preferred >> INDEX_BITS != self._version or index >= len(addresses):
            return addresses
        return (addresses[index], *addresses[:index], *addresses[index + 1 :])

    def _entry(self, index: int) -> Address:
        start = HEADER + index * ENTRY
        family, high, low, scope = self._cells[start : start + ENTRY]
        host = host_of((high, low))
        if family == socket.AF_INET:
            return Address(family, (host, self._port), (high, low))
        return Address(family, (host, self._port, 0, scope), (high, low))

    def _checksum(self, count: int) -> int:
        data = self._map[HEADER * CELL : (HEADER + count * ENTRY) * CELL]
        return binascii.crc32(data, count)
