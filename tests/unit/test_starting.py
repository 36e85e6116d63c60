"""What is done where processes cannot be started: tried again, once a second, by one timer."""

from __future__ import annotations

import errno
import os
from typing import Callable, List, Optional

import pytest

from vsock_proxy.observing.vitals import Vitals
from vsock_proxy.supervision.children import Respawning
from vsock_proxy.supervision.copying import Copying
from vsock_proxy.supervision.starting import Starting
from vsock_proxy.supervision.timers import Action, Timers

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

FULL = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class ManualTimers(Timers):
    """Runs what is to be done later when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0

    def at(self, when: float, action: Action) -> None:
        self.waiting += 1
        super().at(when, action)

    def run(self) -> None:
        self.waiting = 0
        self.look(1e9)


def respawning(timers: Timers) -> Respawning:
    return Respawning(timers, Vitals())


class FakeFleet:
    """Four workers, which can be started as long as nothing fails."""

    size = 4

    def __init__(self) -> None:
        self.missing = 4
        self.fails: Optional[OSError] = None
        self.calls = 0

    def start_missing(self) -> None:
        self.calls += 1
        if self.fails:
            self.missing = 3
            raise self.fails
        self.missing = 0


class Unneeded:
    """There is no name to look up, and no metrics to serve."""

    is_missing = False

    def start(self) -> None:
        """Nothing is missing."""


@pytest.fixture
def timers() -> ManualTimers:
    return ManualTimers()


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
def starting(fleet: FakeFleet, timers: ManualTimers) -> Starting:
    return Starting(fleet, Unneeded(), Unneeded(), timers)  # type: ignore[arg-type]


def test_what_can_be_started_is_and_nothing_is_tried_again(
    starting: Starting, fleet: FakeFleet, timers: ManualTimers, caplog: pytest.LogCaptureFixture
) -> None:
    starting.start()
    assert (fleet.missing, timers.waiting, caplog.messages) == (0, 0, [])


def test_many_requests_for_what_cannot_start_are_one_attempt_at_a_time(
    starting: Starting, fleet: FakeFleet, timers: ManualTimers, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.fails = FULL
    for _ in range(3):
        starting.start()
    assert (fleet.calls, timers.waiting) == (1, 1)
    timers.run()
    assert (fleet.calls, timers.waiting) == (2, 1)
    fleet.fails = None
    with caplog.at_level("INFO"):
        timers.run()
    assert (fleet.calls, fleet.missing, timers.waiting) == (3, 0, 0)
    assert [message[:12] for message in caplog.messages] == ["cannot start", "all 4 worker"]


def test_once_all_is_to_end_nothing_is_started(
    starting: Starting, fleet: FakeFleet, timers: ManualTimers
) -> None:
    fleet.fails = FULL
    starting.start()
    starting.stop()
    timers.run()
    starting.start()
    assert (fleet.calls, timers.waiting) == (1, 0)


class FakeCopier:
    pid: Optional[int] = 100

    def __init__(self) -> None:
        self.fails: List[OSError] = []
        self.started = 0

    def start(self, leave: Callable[[], None]) -> None:
        if self.fails:
            raise self.fails.pop()
        self.started += 1


def test_a_log_process_that_cannot_be_started_is_tried_again(timers: ManualTimers) -> None:
    copier = FakeCopier()
    copying = Copying(copier, respawning(timers), timers, lambda: None)  # type: ignore[arg-type]
    copying.buried(99, 0)
    assert (copier.pid, timers.waiting) == (100, 0)
    copying.buried(100, 1 << 8)
    assert copier.pid is None
    copier.fails = [FULL, FULL]
    for _ in range(2):
        timers.run()
        assert (copier.started, timers.waiting) == (0, 1)
    timers.run()
    assert (copier.started, timers.waiting) == (1, 0)


def test_without_a_log_process_none_is_missed(timers: ManualTimers) -> None:
    copying = Copying(None, respawning(timers), timers, lambda: None)
    copying.buried(100, 0)
    assert copying.descriptors == []
    assert timers.waiting == 0
