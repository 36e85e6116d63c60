"""The silence of a connection, with a clock of the test's own."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsock_proxy.serving.silence import ASK_INTERVAL, FIRST_LOOK, INTERVAL, LOOKS, MOMENT, Silence

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

MILLISECOND = 0.001
# What rounding of sums of fractions may make.
EPSILON = 1e-6


@dataclass
class Run:
    """One connection under a clock that jumps from event to event, as an ideal poll() would.

    events: when poll() tells of something.
    taken: when a side takes a byte of what the kernel holds, of which poll() does not tell.
    held: bytes that the kernel holds at first.
    """

    silence: Silence
    events: List[float] = field(default_factory=list)
    taken: List[float] = field(default_factory=list)
    held: int = 0
    now: float = 0.0
    waits: List[Tuple[float, str]] = field(default_factory=list)

    def until_over(self, patience: float = 1000.0) -> float:
        """When the silence is over; a negative number if it never is."""
        while True:
            pause = self.silence.pause
            due = patience if pause is None else self.now + pause / 1000
            event = next((when for when in self.events if when > self.now), patience)
            self.now = min(due, event)
            if self.now >= patience:
                return -1.0
            if event <= due:
                if self.silence.quiet:
                    self.silence.wake()
            elif self._endure():
                return self.now

    def times(self, what: str) -> List[float]:
        """When something was due."""
        return [when for when, name in self.waits if name == what]

    def _endure(self) -> bool:
        silence, now = self.silence, self.now
        if not silence.quiet:
            silence.fall_quiet(now)
        if silence.lasts(now):
            self.waits.append((now, "lasts"))
            silence.last()
        if silence.asks(now):
            self.waits.append((now, "asks"))
        over = False
        if silence.looks(now):
            self.waits.append((now, "looks"))
            left = self.held - bisect.bisect_right(self.taken, now)
            over = silence.look(now, (0, left))
        silence.set_next(now)
        return over


def begun(idle: float = 0.0, half_close: float = 60.0) -> Silence:
    silence = Silence(half_close)
    silence.begin(idle)
    return silence


def half_closed(idle: float = 0.0, half_close: float = 60.0, asks: bool = False) -> Silence:
    silence = begun(idle, half_close)
    silence.half_close(asks)
    return silence


@pytest.mark.parametrize(
    ("silence", "limit"),
    [
        (begun(idle=0.001), 0.001),
        (begun(idle=1.001), 1.001),
        (begun(idle=100), 100),
        (half_closed(), 60),
        (half_closed(asks=True, half_close=1.001), 1.001),
        (half_closed(idle=5), 5),
        (half_closed(idle=100), 60),
    ],
    ids=["tiny", "fraction", "long", "half-close", "asked", "the shorter", "the half-close's"],
)
def test_a_limit_is_kept_never_early_and_at_most_20_ms_late(silence: Silence, limit: float) -> None:
    over = Run(silence).until_over()
    assert limit <= over <= limit + 0.02


def test_no_limit_never_ends_a_connection_and_waits_for_events_alone() -> None:
    run = Run(begun())
    assert run.until_over() < 0
    assert run.waits == [(MOMENT, "lasts")]
    assert run.silence.pause is None


def test_each_event_begins_the_limit_again() -> None:
    assert 3.5 <= Run(begun(idle=1), events=[0.9, 1.7, 2.5]).until_over() <= 3.52


def test_a_connection_lasts_once_nothing_happened_for_a_moment() -> None:
    run = Run(begun(idle=1), events=[0.03, 0.06, 0.09])
    run.until_over()
    (when,) = run.times("lasts")
    assert 0.09 + MOMENT <= when <= 0.09 + MOMENT + 2 * MILLISECOND


def test_where_the_kernel_holds_nothing_it_is_looked_at_twice() -> None:
    run = Run(half_closed())
    run.until_over()
    assert len(run.times("looks")) == 2
    assert run.times("looks")[0] == FIRST_LOOK


@pytest.mark.parametrize("limit", [0.2, 1.0, 5.0, 60.0])
def test_bytes_in_the_kernel_are_looked_at_about_a_hundred_times_a_limit(
    limit: int,
) -> None:
    run = Run(begun(idle=limit), held=1)
    assert run.until_over() <= limit + 0.02
    assert len(run.times("looks")) <= LOOKS + 2


def test_bytes_that_leave_the_kernel_without_an_event_restart_the_limit() -> None:
    taken = [0.5, 1.4, 2.3]
    assert 3.3 <= Run(begun(idle=1), taken=taken, held=9).until_over() <= 3.3 + 0.1


def test_what_one_side_takes_counts_whatever_the_other_does() -> None:
    silence = begun(idle=1)
    silence.fall_quiet(0.01)
    assert not silence.look(0.01, (5, 7))
    assert not silence.look(0.9, (4, 7))
    assert not silence.look(1.8, (4, 6))
    assert not silence.look(2.7, (4, 6))
    assert silence.look(2.8, (4, 6))


def test_a_client_is_asked_once_an_interval_and_the_limit_is_not_rounded() -> None:
    run = Run(half_closed(asks=True, half_close=2.5))
    assert 2.5 <= run.until_over() <= 2.52
    assert run.times("asks") == pytest.approx([ASK_INTERVAL, 2 * ASK_INTERVAL], abs=0.01)


Times = st.lists(st.floats(0.0, 20.0), max_size=12).map(sorted)


@given(limit=st.floats(0.001, 12.0), events=Times, taken=Times)
def test_the_end_is_never_early_and_late_by_an_interval_at_most(
    limit: float, events: List[float], taken: List[float]
) -> None:
    run = Run(begun(idle=limit), events, taken, held=len(taken) + 1)
    over = run.until_over()
    moved = [when for when in (0.0, *events, *taken) if when <= over]
    # What was taken since the last look before the end cannot be known.
    interval = max(INTERVAL, limit / LOOKS)
    last_known = max((when for when in moved if when <= over - limit), default=0.0)
    assert over >= last_known + limit - EPSILON
    gaps = [when for when in moved if over - limit + EPSILON < when <= over - interval]
    assert not gaps, "bytes moved within the limit"
    assert over <= last_known + limit + max(FIRST_LOOK, interval) + 2 * MILLISECOND
