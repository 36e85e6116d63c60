"""When the master tells what is untold, with the clock and the log handed in."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Tuple

import pytest

from vsock_proxy.observing.teller import Teller
from vsock_proxy.observing.untold import LEFT_OUT, NOT_ACCEPTED, UNWRITTEN, Untold

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


@dataclass
class FakeStderr:
    fd: int = 2


@dataclass
class FakeLog:
    """A log that can be written as long as code is 0."""

    untold: Untold
    code: int = 0
    lines: List[str] = field(default_factory=list)
    attempts: int = 0
    stderr: FakeStderr = field(default_factory=FakeStderr)

    def finish_line(self) -> int:
        if not self.untold.is_torn:
            return 0
        if not self.code:
            self.lines.append(self.untold.rest.decode())
            self.untold.keep_rest(b"")
        return self.code

    def write(self, level: int, text: str, known: Dict[str, object]) -> int:
        self.attempts += 1
        if not self.code:
            self.lines.append(f"{logging.getLevelName(level)} {text % known}")
        return self.code


@pytest.fixture
def pair() -> Iterator[Tuple[FakeLog, Teller]]:
    log = FakeLog(Untold())
    yield log, Teller(log)  # type: ignore[arg-type]
    for fd in (log.untold.reader, log.untold._writer):
        os.close(fd)


def run_until(teller: Teller, until: float) -> List[float]:
    """Look whenever that is due; at which times."""
    times = []
    while teller.due is not None and teller.due <= until:
        times.append(round(teller.due, 3))
        teller.look(teller.due)
    return times


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        (LEFT_OUT, 0, "WARNING 7 lines were left out, more than 200 a second"),
        (
            UNWRITTEN,
            errno.EAGAIN,
            "WARNING 7 lines of the log could not be written: nobody read it in time",
        ),
        (
            UNWRITTEN,
            errno.ENOSPC,
            "WARNING 7 lines of the log could not be written: No space left on device",
        ),
        (
            NOT_ACCEPTED,
            errno.EPERM,
            "ERROR cannot accept: Operation not permitted; going on (7 attempts failed)",
        ),
    ],
)
def test_one_line_tells_what_all_processes_counted(
    kind: int, code: int, line: str, pair: Tuple[FakeLog, Teller]
) -> None:
    log, teller = pair
    block = log.untold.add(2)
    log.untold.count(kind, 1, code)
    for place, number in ((0, 4), (1, 2)):
        log.untold.belong_to(block.row(place))
        log.untold.count(kind, number, code)
    teller.begin(100.0)
    assert run_until(teller, 110.0) == [100.1, 101.1]
    assert log.lines == [line]
    assert not log.untold.looked_at


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        (LEFT_OUT, 0, "WARNING 1 line was left out, more than 200 a second"),
        (
            UNWRITTEN,
            errno.EAGAIN,
            "WARNING 1 line of the log could not be written: nobody read it in time",
        ),
        (
            NOT_ACCEPTED,
            errno.EPERM,
            "ERROR cannot accept: Operation not permitted; going on (1 attempt failed)",
        ),
    ],
)
def test_what_was_counted_once_is_no_plural(
    kind: int, code: int, line: str, pair: Tuple[FakeLog, Teller]
) -> None:
    log, teller = pair
    log.untold.count(kind, 1, code)
    teller.begin(100.0)
    run_until(teller, 110.0)
    assert log.lines == [line]


def test_the_counts_of_a_pool_that_has_ended_are_told_once(
    pair: Tuple[FakeLog, Teller],
) -> None:
    log, teller = pair
    first, second = log.untold.add(2), log.untold.add(1)
    for row, number in ((first.row(1), 3), (second.row(0), 4)):
        log.untold.belong_to(row)
        log.untold.count(LEFT_OUT, number)
    log.untold.drop(first)
    teller.begin(100.0)
    run_until(teller, 110.0)
    log.untold.drop(second)
    teller.begin(120.0)
    run_until(teller, 130.0)
    assert [line.split()[1] for line in log.lines] == ["7"]


def test_what_goes_on_is_told_once_a_second(pair: Tuple[FakeLog, Teller]) -> None:
    log, teller = pair
    log.untold.count(LEFT_OUT)
    teller.begin(100.0)
    for second in range(4):
        run_until(teller, 100.2 + second)
        log.untold.count(LEFT_OUT, 10)
    assert run_until(teller, 200.0) == [104.1, 105.1]
    assert [line.split()[1] for line in log.lines] == ["1", "10", "10", "10", "10"]


def test_soon_after_a_line_the_next_waits_for_its_second(pair: Tuple[FakeLog, Teller]) -> None:
    log, teller = pair
    log.untold.count(LEFT_OUT)
    teller.begin(100.0)
    assert run_until(teller, 101.5) == [100.1, 101.1]
    log.untold.count(LEFT_OUT)
    teller.begin(101.0)
    assert teller.due == 101.1


def test_a_full_log_is_tried_again_when_there_is_room_and_not_before(
    pair: Tuple[FakeLog, Teller],
) -> None:
    log, teller = pair
    log.code = errno.EAGAIN
    log.untold.count(UNWRITTEN, 3, errno.EAGAIN)
    teller.begin(100.0)
    assert run_until(teller, 10_000.0) == [100.1]
    log.code = 0
    teller.look(20_000.0)
    assert log.lines == ["WARNING 3 lines of the log could not be written: nobody read it in time"]


def test_room_that_is_too_little_is_no_reason_to_try_without_pause(
    pair: Tuple[FakeLog, Teller],
) -> None:
    log, teller = pair
    log.code = errno.EAGAIN
    log.untold.count(UNWRITTEN, 3, errno.EAGAIN)
    teller.begin(100.0)
    run_until(teller, 101.0)
    teller.look(101.0)
    assert teller.due == 102.0


def test_after_another_error_it_is_tried_ever_more_seldom(pair: Tuple[FakeLog, Teller]) -> None:
    log, teller = pair
    log.code = errno.ENOSPC
    log.untold.count(UNWRITTEN, 1, errno.ENOSPC)
    teller.begin(0.0)
    times = run_until(teller, 300.0)
    pauses = [round(after - before) for before, after in zip(times, times[1:])]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_line_that_was_begun_is_ended_before_anything_else(pair: Tuple[FakeLog, Teller]) -> None:
    log, teller = pair
    log.untold.count(UNWRITTEN, 2, errno.EAGAIN)
    log.untold.keep_rest(b"the rest\n")
    teller.begin(100.0)
    run_until(teller, 102.0)
    assert log.lines[0] == "the rest\n"
    assert len(log.lines) == 2


def test_who_counts_while_nobody_looks_wakes_the_master(pair: Tuple[FakeLog, Teller]) -> None:
    log, teller = pair
    log.untold.count(LEFT_OUT)
    assert os.read(log.untold.reader, 10) == b"\0"
    teller.begin(100.0)
    log.untold.count(LEFT_OUT)
    with pytest.raises(BlockingIOError):
        os.read(log.untold.reader, 10)


def test_what_is_counted_while_nobody_looks_any_more_is_not_forgotten() -> None:
    untold = CountedInBetween()
    teller = Teller(FakeLog(untold))  # type: ignore[arg-type]
    teller.begin(100.0)
    # Twice is once: it is looked at already.
    teller.begin(100.05)
    assert run_until(teller, 100.1) == [100.1]
    assert teller.due == pytest.approx(100.2)
    assert untold.looked_at
    for fd in (untold.reader, untold._writer):
        os.close(fd)


class CountedInBetween(Untold):
    """A worker counts just before the master looks no more, and so does not wake it."""

    @property
    def looked_at(self) -> bool:
        return Untold.looked_at.fget(self)  # type: ignore[attr-defined, no-any-return]

    @looked_at.setter
    def looked_at(self, value: bool) -> None:
        if not value:
            self.count(LEFT_OUT)
        Untold.looked_at.fset(self, value)  # type: ignore[attr-defined]
