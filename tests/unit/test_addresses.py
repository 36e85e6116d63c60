"""The table of addresses, proved by a model: every order of stores and reads, and every death.

The writer's stores are recorded one by one. A reader then runs against them, and before each cell
that it reads the model lets the writer go on by any number of stores. All these runs are made, none
is left to luck.
"""

from __future__ import annotations

import copy
from typing import Callable, Dict, List, Type, Union

import pytest

from tests.support.publishing import (
    FOUR,
    KILLED_AFTER,
    ONE,
    THREE,
    TWO,
    Addresses,
    History,
    Store,
    length_of,
    table_over,
)
from vsock_proxy.endpoint.addresses import INDEX_BITS, PREFERRED, SIZE, VERSION

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

Choose = Callable[[int], int]


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
