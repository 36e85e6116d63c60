"""The table of addresses between processes: what each has, and how it is woken."""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Callable

import pytest

from tests.support import processes
from tests.support.publishing import (
    FOUR,
    KILLED_AFTER,
    ONE,
    PORT,
    THREE,
    TWO,
    Addresses,
    ipv4,
    length_of,
)
from vsock_proxy.endpoint.addresses import MAX_ADDRESSES, AddressTable

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

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
    before = processes.descriptors(os.getpid())
    table = AddressTable(PORT)
    assert len(processes.descriptors(os.getpid()) - before) <= 2
    table.publish(ONE)
    table.nudge()
    table.close()
    assert processes.descriptors(os.getpid()) == before


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
