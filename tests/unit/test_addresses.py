"""The table of addresses, proved by a model: every order of stores and reads, and every death.

The writer's stores are recorded one by one. A reader then runs against them, and before each cell
that it reads the model lets the writer go on by any number of stores. All these runs are made, none
is left to luck.
"""

from __future__ import annotations

import copy
import os
import select
import signal
import socket
import threading
from typing import Callable, Dict, List, Optional, Tuple, Type, Union

import pytest

from vsock_proxy.endpoint.addresses import (
    INDEX_BITS,
    MAX_ADDRESSES,
    PREFERRED,
    SIZE,
    VERSION,
    Address,
    AddressTable,
    make_address,
)

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

PORT = 443
Addresses = Tuple[Address, ...]
Store = Tuple[int, int]
Choose = Callable[[int], int]


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


# The writer


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
    """What one writer after another has stored, and which list each version is."""

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


class Interleaved(List[int]):
    """Cells to which, before each read, the writer makes as many more of its stores as is chosen.

    To choose among those positions at which this cell has a new value is to choose among all: what
    else the writer stores in between can be chosen at the next read.
    """

    def __init__(self, stores: List[Store], choose: Choose, position: int = 0) -> None:
        super().__init__([0] * SIZE)
        self.position = 0
        self._stores = stores
        self._choose = choose
        self._go_on_to(position)

    def __getitem__(self, cell: Union[int, slice]) -> Union[int, List[int]]:  # type: ignore[override]
        if isinstance(cell, slice):
            return [self._read(each) for each in range(*cell.indices(SIZE))]
        return self._read(cell)

    def look(self, cell: int) -> int:
        """Its value, without a read."""
        return super().__getitem__(cell)

    def _read(self, cell: int) -> int:
        positions = [self.position] + [
            index + 1
            for index in range(self.position, len(self._stores))
            if self._stores[index][0] == cell
        ]
        self._go_on_to(positions[self._choose(len(positions))])
        return super().__getitem__(cell)

    def _go_on_to(self, position: int) -> None:
        for cell, value in self._stores[self.position : position]:
            super().__setitem__(cell, value)
        self.position = position


class Disordered(Interleaved):
    """Cells whose stores become visible in any order, as a processor may show them to another.

    After the reads of a first try, all are visible.
    """

    PATIENCE = 10

    def __init__(self, stores: List[Store], choose: Choose, position: int = 0) -> None:
        super().__init__(stores, choose, position)
        self._seen: Dict[int, int] = {}
        self._reads = 0

    def _read(self, cell: int) -> int:
        self._reads += 1
        values = [self.look(cell)]
        for index, value in self._stores[self.position :]:
            if index == cell and value != values[-1]:
                values.append(value)
        first = self._seen.get(cell, 0)
        if self._reads > self.PATIENCE:
            first = len(values) - 1
        self._seen[cell] = first + self._choose(len(values) - first)
        return values[self._seen[cell]]


def explore(run: Callable[[Choose], None]) -> int:
    """Run with every sequence of choices that there is; how many there were."""
    path: List[List[int]] = []
    runs = 0
    while True:
        depth = 0

        def choose(count: int) -> int:
            nonlocal depth
            if depth == len(path):
                path.append([0, count])
            depth += 1
            return path[depth - 1][0]

        run(choose)
        runs += 1
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            return runs
        path[-1][0] += 1


def read_everywhere(history: History, warm_up: int, kind: Type[Interleaved] = Interleaved) -> None:
    """A reader that has the list of that moment, or is new at 0, and reads at any later moment."""
    reader = table_over(Interleaved(history.stores, lambda count: 0, warm_up))
    reader.current()

    def run(choose: Choose) -> None:
        cells = kind(history.stores, choose, warm_up)
        table = copy.copy(reader)
        table._cells = cells  # type: ignore[assignment]
        first = cells.look(VERSION)
        found = table.current()
        last = max(history.lists) if kind is Disordered else cells.look(VERSION)
        right = [history.lists[version] for version in range(first, last + 1)]
        assert found in right, (found, right)

    explore(run)


def after(*publications: Addresses) -> History:
    """What is stored when these have been published."""
    history = History()
    for addresses in publications:
        history.publish(addresses)
    return history


# To be killed after the last store is to have published.
KILLED_AFTER = range(1, length_of(TWO))


def test_a_reader_has_a_list_that_was_published_whenever_it_looks() -> None:
    history = after(ONE, TWO, THREE)
    for warm_up in range(len(history.stores)):
        read_everywhere(history, warm_up)


@pytest.mark.parametrize("stores", KILLED_AFTER)
def test_a_writer_killed_halfway_changes_nothing_and_its_successor_does(
    stores: int,
) -> None:
    history = after(ONE)
    history.publish(TWO, stores)
    for warm_up in range(len(history.stores) + 1):
        read_everywhere(history, warm_up)
    between = len(history.stores)
    history.publish(THREE)
    history.publish(FOUR)
    for warm_up in (0, length_of(ONE), between):
        read_everywhere(history, warm_up)


@pytest.mark.parametrize("stores", KILLED_AFTER)
def test_a_successor_that_is_killed_too_changes_nothing(stores: int) -> None:
    for successors in range(1, length_of(THREE)):
        history = after(ONE)
        history.publish(TWO, stores)
        history.publish(THREE, successors)
        history.publish(FOUR)
        for warm_up in (0, length_of(ONE)):
            read_everywhere(history, warm_up)


@pytest.mark.parametrize("stores", range(1, length_of(ONE)))
def test_a_first_writer_that_is_killed_leaves_an_empty_list_to_publish_to(
    stores: int,
) -> None:
    history = History()
    history.publish(ONE, stores)
    history.publish(TWO)
    assert history.lists == {0: (), 1: TWO}
    read_everywhere(history, 0)


def test_a_list_is_whole_in_whatever_order_its_stores_become_visible() -> None:
    history = after(ONE, FOUR, ONE)
    read_everywhere(history, 0, Disordered)
    read_everywhere(history, length_of(ONE), Disordered)


def test_a_mark_counts_for_the_list_it_was_made_for_and_for_no_other() -> None:
    history = after(ONE, TWO, FOUR)
    for position in range(len(history.stores) + 1):
        marked = after(ONE, TWO, FOUR)
        # By a worker that has seen TWO and was held up until now.
        marked.stores.insert(position, (PREFERRED, 2 << INDEX_BITS | 1))
        read_marked(marked, position)


def read_marked(history: History, marked: int) -> None:
    preferred = {**history.lists, 2: tuple(reversed(TWO))}

    def run(choose: Choose) -> None:
        cells = Interleaved(history.stores, choose)
        found = table_over(cells).current()
        (version,) = [v for v, listed in history.lists.items() if set(listed) == set(found)]
        allowed = [history.lists[version]]
        if cells.position > marked:
            allowed.append(preferred[version])
        assert found in allowed
        if marked + 1 == cells.position == len(history.stores):
            assert found == preferred[version]

    explore(run)


# Processes


class Deadly:
    """Shared cells, of which the so-manieth store is the last thing that this process does."""

    def __init__(self, cells: memoryview, stores: int) -> None:
        self._cells = cells
        self._left = stores

    def __getitem__(self, cell: int) -> int:
        return int(self._cells[cell])

    def __setitem__(self, cell: int, value: int) -> None:
        self._cells[cell] = value
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def publish_and_die(table: AddressTable, addresses: Addresses, stores: int) -> None:
    """By a child that kills itself after this number of stores."""
    pid = os.fork()
    if not pid:
        table._cells = Deadly(table._cells, stores)  # type: ignore[assignment]
        table.publish(addresses)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)


def in_a_new_process(look: Callable[[], bool]) -> bool:
    pid = os.fork()
    if not pid:
        os._exit(not look())
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("stores", KILLED_AFTER)
def test_a_worker_forked_after_a_publisher_was_killed_has_the_old_list(stores: int) -> None:
    table = AddressTable(PORT)
    table.publish(ONE)
    publish_and_die(table, TWO, stores)
    assert in_a_new_process(lambda: table.current() == ONE)
    assert table.current() == ONE
    table.publish(THREE)
    assert in_a_new_process(lambda: table.current() == THREE)


def test_the_successor_of_a_killed_writer_announces_the_first_list() -> None:
    table = AddressTable(PORT)
    publish_and_die(table, ONE, length_of(ONE))
    waiting = threading.Thread(target=select.select, args=([table.published], [], [], 20.0))
    waiting.start()
    table.announce()
    waiting.join(5.0)
    assert not waiting.is_alive()
    assert table.current() == ONE


def test_before_the_first_list_there_is_nothing_to_announce() -> None:
    table = AddressTable(PORT)
    table.announce()
    assert not table._is_announced()


def test_what_is_published_is_what_is_read_zone_and_order_and_all() -> None:
    table = AddressTable(PORT)
    for addresses in (TWO, THREE, ONE, FOUR):
        table.publish(addresses)
        assert table.current() == addresses


def test_the_list_has_room_for_so_many_and_no_more() -> None:
    table = AddressTable(PORT)
    many = tuple(ipv4(f"192.0.2.{number}") for number in range(MAX_ADDRESSES + 1))
    for _ in range(2):
        table.publish(many)
        assert table.current() == many[:MAX_ADDRESSES]


def test_a_preferred_address_is_first_until_the_list_changes() -> None:
    table = AddressTable(PORT)
    table.publish(THREE)
    table.current()
    table.prefer(THREE[2])
    assert table.current() == (THREE[2], THREE[0], THREE[1])
    table.publish(tuple(reversed(THREE)))
    assert table.current() == tuple(reversed(THREE))


def test_a_preferred_address_that_the_list_lacks_changes_nothing() -> None:
    table = AddressTable(PORT)
    table.publish(THREE)
    table.current()
    table.prefer(FOUR[0])
    assert table.current() == THREE


# Being woken


def is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def test_a_table_costs_two_descriptors_and_gives_them_back() -> None:
    before = set(os.listdir("/proc/self/fd"))
    table = AddressTable(PORT)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 2
    table.publish(ONE)
    table.nudge()
    table.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_nudge_of_a_worker_is_there_to_be_taken_once() -> None:
    table = AddressTable(PORT)
    assert not is_readable(table.nudges)

    def nudge() -> bool:
        table.nudge()
        return True

    for _ in range(3):
        assert in_a_new_process(nudge)
    assert is_readable(table.nudges)
    table.take_nudges()
    assert not is_readable(table.nudges)
    table.take_nudges()
    table.close()


def test_nudges_that_nobody_takes_neither_wait_nor_fail() -> None:
    table = AddressTable(PORT)
    for _ in range(100_000):
        table.nudge()
    table.take_nudges()
    assert not is_readable(table.nudges)
    table.close()


def test_a_nudge_that_nobody_is_there_for_does_not_fail() -> None:
    table = AddressTable(PORT)
    os.close(table.nudges)
    table.nudge()
    os.close(table.published)


def test_neither_way_of_being_woken_is_taken_for_the_other() -> None:
    table = AddressTable(PORT)
    table.nudge()
    assert not is_readable(table.published)
    table.publish(ONE)
    table.publish(TWO)
    assert is_readable(table.published)
    table.take_nudges()
    assert is_readable(table.published)
    assert not is_readable(table.nudges)
    assert in_a_new_process(lambda: is_readable(table.published))
    table.close()


def test_after_a_withdrawal_the_next_list_is_waited_for_like_the_first() -> None:
    table = AddressTable(PORT)
    table.withdraw()
    assert not is_readable(table.published)
    table.publish(ONE)
    for _ in range(2):
        table.withdraw()
        assert in_a_new_process(lambda: table.current() == ())
        assert not is_readable(table.published)
    table.announce()
    assert not is_readable(table.published)
    table.publish(TWO)
    assert is_readable(table.published)
    assert in_a_new_process(lambda: table.current() == TWO)
    table.close()
