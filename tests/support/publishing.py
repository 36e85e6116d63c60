"""A table of addresses that records each store, and writers that are killed between two stores."""

from __future__ import annotations

import copy
import socket
from typing import Dict, List, Optional, Tuple

from vsock_proxy.endpoint.addresses import SIZE, VERSION, Address, AddressTable, make_address

PORT = 443
Addresses = Tuple[Address, ...]
Store = Tuple[int, int]


def ipv4(host: str) -> Address:
    return make_address(socket.AF_INET, (host, PORT))


def ipv6(host: str, scope: int = 0) -> Address:
    return make_address(socket.AF_INET6, (host, PORT, 0, scope))


# Of different lengths, so that a list may reach beyond the end of the one before.
ONE: Addresses = (ipv4("192.0.2.1"),)
TWO: Addresses = (ipv6("fe80::2", 7), ipv4("192.0.2.2"))
THREE: Addresses = (ipv4("192.0.2.3"), ipv6("2001:db8::3"), ipv4("192.0.2.1"))
FOUR: Addresses = (ipv6("2001:db8::4"),)

# Each table has descriptors, and the model makes a hundred thousand tables.
PATTERN = AddressTable(PORT)


def table_over(cells: List[int]) -> AddressTable:
    """The table of a process that was forked before the first publication, over these cells."""
    table = copy.copy(PATTERN)
    table._cells = cells  # type: ignore[assignment]
    return table


class Killed(Exception):
    """The writer was killed."""


class Recording(List[int]):
    """Cells that remember each store to them; the writer dies after the last one allowed."""

    def __init__(self, stores: List[Store], allowed: Optional[int]) -> None:
        super().__init__([0] * SIZE)
        for cell, value in stores:
            super().__setitem__(cell, value)
        self.stores: List[Store] = []
        self._allowed = allowed

    def __setitem__(self, cell: int, value: int) -> None:  # type: ignore[override]
        super().__setitem__(cell, value)
        self.stores.append((cell, value))
        if len(self.stores) == self._allowed:
            raise Killed


class History:
    """What several writers have stored, one after another, and the list of each version."""

    def __init__(self) -> None:
        self.stores: List[Store] = []
        self.lists: Dict[int, Addresses] = {0: ()}

    def publish(self, addresses: Addresses, allowed: Optional[int] = None) -> int:
        """Publish in a process that dies after this number of stores. Returns how many it made."""
        cells = Recording(self.stores, allowed)
        try:
            table_over(cells).publish(addresses)
        except Killed:
            pass
        self.stores += cells.stores
        if cells[VERSION] not in self.lists:
            self.lists[cells[VERSION]] = addresses
        return len(cells.stores)

    def copy(self) -> History:
        other = History()
        other.stores, other.lists = list(self.stores), dict(self.lists)
        return other


def length_of(addresses: Addresses) -> int:
    """How many stores it takes to publish a list."""
    return History().publish(addresses)


# The reader


# Without the last store: a writer that is killed after it has published.
KILLED_AFTER = range(1, length_of(TWO))
