"""The scoreboard, and what is made of it for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

import pytest

from tests.support.workers import ABSENT, BUSY, IDLE, SECOND, board_of
from vsock_proxy.observing import report
from vsock_proxy.observing.closing import cut_short
from vsock_proxy.observing.scoreboard import DRAINS, ROUTE, Row, State
from vsock_proxy.settings import Endpoint

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

NOW = 100 * SECOND


# Who is there, and who is busy


ALL_BUSY: List[Tuple[Tuple[str, ...], bool, int]] = [
    ((IDLE,), False, 0),
    ((BUSY,), True, 1),
    ((ABSENT,), False, 0),
    ((BUSY, IDLE), False, 1),
    ((BUSY, BUSY), True, 2),
    ((BUSY, ABSENT), True, 1),
    ((ABSENT, ABSENT), False, 0),
    ((IDLE, ABSENT), False, 0),
    ((BUSY, ABSENT, IDLE), False, 1),
]


@pytest.mark.parametrize(("workers", "all_busy", "busy"), ALL_BUSY, ids=str)
def test_all_are_busy_if_none_that_is_there_is_idle(
    workers: Tuple[str, ...], all_busy: bool, busy: int
) -> None:
    board = board_of(*workers)
    assert board.all_busy() is all_busy
    assert board.busy() == busy


def test_a_worker_that_ends_while_busy_is_absent_and_then_another_is_idle() -> None:
    board = board_of(BUSY, BUSY)
    board.vacate(1)
    assert [(row.pid, row.state) for row in board.rows()] == [
        (0, State.ABSENT),
        (1002, State.STARTING),
    ]
    assert board.busy() == 1
    board.claim(1, 2001)
    assert not board.all_busy()
    assert board.rows()[0].pid == 2001


# The table


ROW = Row(
    number=1,
    pid=4711,
    state=State.RELAYING,
    drains=False,
    since=NOW - 2 * SECOND,
    route=0,
    serial=3,
    connections=17,
    peer=(16, 1024, 0, 0),
    address=(0, 0xFFFF_0A00_0001),
    up=5,
    down=6,
    served=7,
    failures=(1, 0, 0, 0, 0, 1),
    gone=3,
    total_up=100,
    total_down=200,
)


def staff(
    *rows: Row, services: Tuple[str, ...] = ("8000",), own: bool = False, retired: bool = False
) -> report.Staff:
    endpoints = (Endpoint("kms.example", 443),) * len(services)
    return report.Staff(services, own, retired, rows, endpoints)


SERVING = ["2.0", "3-17", "16:1024", "10.0.0.1", "5", "6"]
CONNECTING = ["2.0", "3-17", "16:1024", "-", "5", "6"]
WITHOUT = ["2.0", "-", "-", "-", "0", "0"]
SHOWN: Dict[str, Tuple[Row, List[str]]] = {
    "starting": (replace(ROW, state=State.STARTING), ["4711", "starting", *WITHOUT]),
    "idle": (replace(ROW, state=State.IDLE), ["4711", "idle", *WITHOUT]),
    "connecting": (replace(ROW, state=State.CONNECTING), ["4711", "connecting", *CONNECTING]),
    "relaying": (ROW, ["4711", "relaying", *SERVING]),
    "half-closed": (replace(ROW, state=State.HALF_CLOSED), ["4711", "half-closed", *SERVING]),
    "idle, told to end": (replace(ROW, state=State.IDLE, drains=True), ["4711", "idle", *WITHOUT]),
    "connecting, told to end": (
        replace(ROW, state=State.CONNECTING, drains=True),
        ["4711", "draining", *CONNECTING],
    ),
    "relaying, told to end": (replace(ROW, drains=True), ["4711", "draining", *SERVING]),
    "half-closed, told to end": (
        replace(ROW, state=State.HALF_CLOSED, drains=True),
        ["4711", "draining", *SERVING],
    ),
    "ended": (replace(ROW, state=State.ABSENT, pid=0), ["-", "absent", *WITHOUT]),
    "ended, told to": (
        replace(ROW, state=State.ABSENT, pid=0, drains=True),
        ["-", "absent", *WITHOUT],
    ),
    "never started": (
        replace(ROW, state=State.ABSENT, pid=0, since=0),
        ["-", "absent", "-", *WITHOUT[1:]],
    ),
}


@pytest.mark.parametrize(("row", "cells"), SHOWN.values(), ids=SHOWN.keys())
def test_a_row_says_what_its_worker_does(row: Row, cells: List[str]) -> None:
    _, (line, _), _ = report.table([staff(row)], NOW)
    assert line.split() == ["1", *cells, "7", "2"]


def test_the_totals_are_of_all_workers_and_tell_each_cause() -> None:
    rows = [ROW, replace(ROW, up=0, down=0, failures=(0, 1, 0, 0, 2, 0), gone=0)]
    assert str(report.NOTHING.plus(rows)) == (
        "14 connections served, 5 failed (1 refused, 1 timed out, 0 unreachable, 0 unresolved, "
        "2 denied, 1 otherwise), 3 with the client gone before, 200 bytes up, 400 bytes down"
    )


IDLE_ROW = replace(ROW, number=2, state=State.IDLE)
ENDED_ROW = replace(ROW, number=3, state=State.ABSENT, pid=0)
SHARED: Dict[str, Any] = {"services": ("8000", "8002")}
OWN: Dict[str, Any] = {"services": ("8001",), "own": True}
RETIRED: Dict[str, Any] = {**OWN, "retired": True}
POOLS: Dict[str, Tuple[List[report.Staff], List[List[str]]]] = {
    "one service, which shares its workers with none": (
        [staff(ROW)],
        [["worker", "pid"], ["1", "4711"]],
    ),
    "one service, which has workers of its own": (
        [staff(ROW, **OWN)],
        [["worker", "pid"], ["8001/1", "4711"]],
    ),
    "one service, of which a pool has replaced another": (
        [staff(ROW), staff(replace(ROW, pid=4700, drains=True), ENDED_ROW, retired=True)],
        [["worker", "pid"], ["1", "4711"], ["1", "4700"]],
    ),
    "services that share workers": (
        [staff(replace(ROW, route=1), IDLE_ROW, ENDED_ROW, **SHARED)],
        [["worker", "service"], ["1", "8002"], ["2", "-"], ["3", "-"]],
    ),
    "several pools": (
        [staff(ROW, **SHARED), staff(ROW, IDLE_ROW, **OWN)],
        [["worker", "service"], ["1", "8000"], ["8001/1", "8001"], ["8001/2", "8001"]],
    ),
    "several pools, of which one has replaced another": (
        [staff(IDLE_ROW, **SHARED), staff(IDLE_ROW, **OWN), staff(ROW, ENDED_ROW, **RETIRED)],
        [["worker", "service"], ["2", "-"], ["8001/2", "8001"], ["8001/1", "8001"]],
    ),
}


@pytest.mark.parametrize(("pools", "cells"), POOLS.values(), ids=POOLS.keys())
def test_the_table_of_several_services_says_whose_each_worker_is(
    pools: List[report.Staff], cells: List[List[str]]
) -> None:
    *lines, _ = [text for text, _ in report.table(pools, NOW)]
    assert [line.split()[:2] for line in lines] == cells
    assert len({len(line) for line in lines}) == 1


def test_the_totals_are_of_all_pools_and_of_those_that_have_ended() -> None:
    ended = report.NOTHING.plus([ROW]).plus([IDLE_ROW, ENDED_ROW])
    *_, (line, _) = report.table([staff(ROW), staff(ROW, ENDED_ROW, **RETIRED)], NOW, ended)
    assert line == str(report.NOTHING.plus([ROW] * 6))
    assert line.startswith("42 connections served, 12 failed (6 refused, 0 timed out, ")
    assert line.endswith(", 18 with the client gone before, 600 bytes up, 1200 bytes down")


ENDPOINT = Endpoint("kms.example.org", 443)
DIED = {
    State.STARTING: None,
    State.IDLE: None,
    State.CONNECTING: (
        "#3-17 {}16:1024 closed: its worker died before there was a connection to "
        "kms.example.org:443"
    ),
    State.RELAYING: (
        "#3-17 {}16:1024 -> 10.0.0.1:443 ended: 5 bytes up, 6 bytes down, 2.000 s, worker died"
    ),
}


@pytest.mark.parametrize(("state", "line"), DIED.items(), ids=str)
def test_the_line_of_a_dead_workers_connection_names_its_service(
    state: State, line: Optional[str]
) -> None:
    row = replace(ROW, state=state)
    for several, name in ((False, ""), (True, "8001: ")):
        written = cut_short(row, "1", "8001", several, ENDPOINT, NOW)
        assert (written and written[0] % written[1]) == (line and line.format(name))


def test_a_worker_that_was_told_to_end_has_a_successor_that_was_not() -> None:
    board = board_of(BUSY)
    board.slot(1)[DRAINS] = True
    assert board.rows()[0].drains
    board.claim(1, 4712)
    assert not board.rows()[0].drains


def test_a_new_worker_has_its_predecessors_service_until_it_takes_one() -> None:
    # To turn from one to another is more than to say so: what was counted belongs to one of them.
    board = board_of(BUSY)
    board.slot(1)[ROUTE] = 2
    board.claim(1, 4712)
    assert board.rows()[0].route == 2
