"""All workers are busy: the warning, and the time that is counted."""

from __future__ import annotations

import logging
import os
from typing import Callable, Iterator, List, Optional

import pytest

from tests.support.workers import ABSENT, BUSY, IDLE, SECOND, board_of
from vsock_proxy.observing.saturation import (
    LOOK_INTERVAL,
    TOLERATED,
    WARNING_INTERVAL,
    Alarm,
    Watch,
)
from vsock_proxy.observing.scoreboard import SINCE, STATE, State

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


class Saturation:
    """Workers, the master's watch over them, and what it has warned of."""

    def __init__(self, *workers: str, service: Optional[str] = None) -> None:
        self.board = board_of(*workers)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self.alarm = Alarm(self.board, self._writer)
        self.watch = Watch(self.board, service)
        self.now = 1000.0

    def take_place(self, number: int) -> None:
        """As a worker does when it has accepted."""
        self.board.set_busy(number, True)
        if self.board.all_busy():
            self.alarm.raise_once()

    def rest(self, number: int) -> None:
        self.board.set_busy(number, False)

    def pass_time(self, seconds: float) -> None:
        """As the master does meanwhile."""
        until = self.now + seconds
        while True:
            try:
                os.read(self._reader, 4096)
                self.watch.suspect(self.now)
            except BlockingIOError:
                # No alarm.
                pass
            due = self.watch.due
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.watch.look(self.now)
        self.now = until

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
def saturate(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Saturation]]:
    made: List[Saturation] = []

    def make(*workers: str, service: Optional[str] = None) -> Saturation:
        made.append(Saturation(*workers, service=service))
        return made[-1]

    caplog.set_level(logging.WARNING)
    yield make
    for saturation in made:
        saturation.close()


def warned(caplog: pytest.LogCaptureFixture) -> List[str]:
    return [record.getMessage().split(",")[0] for record in caplog.records]


BUSY_FOR_LONG = 2 * TOLERATED


def test_all_busy_for_a_while_is_one_warning_of_how_many_they_are(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(BUSY, IDLE, ABSENT)
    saturation.take_place(2)
    saturation.pass_time(TOLERATED - LOOK_INTERVAL)
    assert warned(caplog) == []
    saturation.pass_time(WARNING_INTERVAL / 2)
    assert warned(caplog) == ["all 2 workers are busy"]
    saturation.pass_time(WARNING_INTERVAL)
    assert len(warned(caplog)) == 2


WARNINGS = [
    (None, False, "all 2 workers are busy, further clients wait; -w sets how many there are"),
    (
        None,
        True,
        "all 2 workers that services share are busy, further clients wait; -w sets how many there "
        "are, and workers: gives a service its own",
    ),
    (
        "8001",
        True,
        "all 2 workers of 8001 are busy, further clients wait; workers: of the service sets how "
        "many there are",
    ),
    (
        "8001",
        False,
        "all 2 workers of 8001 are busy, further clients wait; workers: of the service sets how "
        "many there are",
    ),
]


@pytest.mark.parametrize(("service", "several", "warning"), WARNINGS)
def test_the_warning_names_the_pool_and_what_sets_its_size(
    service: Optional[str],
    several: bool,
    warning: str,
    saturate: Callable[..., Saturation],
    caplog: pytest.LogCaptureFixture,
) -> None:
    saturation = saturate(BUSY, IDLE, service=service)
    saturation.board.several = several
    saturation.take_place(2)
    saturation.pass_time(BUSY_FOR_LONG)
    assert [record.getMessage() for record in caplog.records] == [warning]


def test_an_alarm_of_another_pool_is_no_warning_of_this_one(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(BUSY, IDLE)
    saturation.watch.suspect(saturation.now)
    saturation.pass_time(BUSY_FOR_LONG)
    assert warned(caplog) == []
    assert saturation.watch.due is None


FLAGS = ("watched", "serving", "retired", "several")


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_of_a_pool_is_one_of_its_own(flag: str) -> None:
    board = board_of(BUSY, IDLE)
    setattr(board, flag, True)
    assert {name for name in FLAGS if getattr(board, name)} == {flag}
    assert board.busy() == 1
    setattr(board, flag, False)
    assert not any(getattr(board, name) for name in FLAGS)


def test_all_busy_for_a_moment_is_none_and_nobody_looks_afterwards(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(BUSY, IDLE)
    saturation.take_place(2)
    saturation.pass_time(TOLERATED / 2)
    saturation.rest(1)
    saturation.pass_time(BUSY_FOR_LONG)
    assert warned(caplog) == []
    assert saturation.watch.due is None


def test_a_worker_that_dies_before_it_could_tell_silences_no_later_alarm(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(BUSY, IDLE)
    saturation.board.set_busy(2, True)
    # The byte is the last thing that it would have written.
    lost = os.open(os.devnull, os.O_WRONLY)
    Alarm(saturation.board, lost).raise_once()
    os.close(lost)
    saturation.board.vacate(2)
    saturation.board.claim(2, 2002)
    saturation.take_place(2)
    saturation.pass_time(BUSY_FOR_LONG)
    assert warned(caplog) == ["all 2 workers are busy"]


def test_the_last_idle_worker_that_ends_is_as_good_as_an_alarm(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(BUSY, IDLE)
    saturation.board.vacate(2)
    saturation.watch.suspect(saturation.now)
    saturation.pass_time(BUSY_FOR_LONG)
    assert warned(caplog) == ["the only worker is busy"]


def test_where_no_worker_is_there_none_is_busy(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(IDLE)
    saturation.board.vacate(1)
    saturation.watch.suspect(saturation.now)
    saturation.pass_time(BUSY_FOR_LONG)
    assert warned(caplog) == []
    assert saturation.watch.due is None


def test_once_no_clients_come_any_more_there_is_nothing_to_warn_of(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(BUSY, IDLE)
    saturation.take_place(2)
    saturation.pass_time(TOLERATED / 2)
    saturation.watch.end(saturation.now)
    saturation.take_place(1)
    saturation.watch.suspect(saturation.now)
    saturation.pass_time(BUSY_FOR_LONG)
    assert warned(caplog) == []
    assert saturation.watch.due is None


def test_an_alarm_that_comes_while_the_master_stops_looking_is_heard(
    saturate: Callable[..., Saturation], caplog: pytest.LogCaptureFixture
) -> None:
    saturation = saturate(BUSY, IDLE)
    saturation.take_place(2)
    saturation.rest(2)
    saturation.pass_time(TOLERATED / 2)
    saturation.take_place(2)
    saturation.pass_time(BUSY_FOR_LONG)
    assert warned(caplog) == ["all 2 workers are busy"]


def test_an_alarm_harms_nobody_where_no_master_reads_it(
    saturate: Callable[..., Saturation],
) -> None:
    saturation = saturate("idle")
    # A pipe takes 65,536 bytes.
    for _ in range(70_000):
        saturation.alarm.wake_master()
    saturation.take_place(1)
    reader, writer = os.pipe()
    os.close(reader)
    Alarm(saturation.board, writer).raise_once()
    os.close(writer)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.35, 1.0, 5.25])
def test_the_time_adds_up_from_the_last_place_taken_to_the_first_free(
    saturate: Callable[..., Saturation], seconds: float
) -> None:
    saturation = saturate(BUSY, IDLE)
    slot = saturation.board.slot(2)
    for times in (1, 2):
        saturation.take_place(2)
        slot[STATE] = State.RELAYING
        saturation.pass_time(seconds)
        saturation.rest(2)
        slot[STATE], slot[SINCE] = State.IDLE, round(saturation.now * SECOND)
        saturation.pass_time(BUSY_FOR_LONG)
        assert saturation.board.saturated == pytest.approx(
            times * seconds * SECOND, abs=SECOND / 1e6
        )


def test_time_in_which_some_were_idle_all_along_is_not_added_up(
    saturate: Callable[..., Saturation],
) -> None:
    saturation = saturate(BUSY, IDLE)
    slot = saturation.board.slot(2)
    slot[STATE], slot[SINCE] = State.IDLE, SECOND
    # As whoever wakes the master for another reason.
    saturation.watch.suspect(saturation.now)
    saturation.pass_time(BUSY_FOR_LONG)
    assert saturation.board.saturated == 0


def test_time_is_added_up_until_no_clients_come_any_more(
    saturate: Callable[..., Saturation],
) -> None:
    saturation = saturate(BUSY)
    saturation.watch.suspect(saturation.now)
    saturation.pass_time(0.25)
    saturation.watch.end(saturation.now)
    saturation.pass_time(BUSY_FOR_LONG)
    assert saturation.board.saturated == pytest.approx(SECOND / 4, abs=SECOND / 1e6)
