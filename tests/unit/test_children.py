"""The master's children: real processes, forked, buried and ended."""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, List

import pytest

from tests.support.timing import wait_until
from vsock_proxy.observing.vitals import Vitals
from vsock_proxy.process.signals import Signals
from vsock_proxy.supervision.children import Children, Respawning
from vsock_proxy.supervision.pacer import FORKS_PER_SECOND, Pacer
from vsock_proxy.supervision.timers import Timers

pytestmark = pytest.mark.hybrid_only


def wait_forever() -> None:
    while True:
        signal.pause()


def reaped(children: Children, seen: List[int]) -> List[int]:
    """What was seen once there is something."""

    def look() -> List[int]:
        children.reap()
        return seen

    return wait_until(look, "the end of a child")


@pytest.fixture
def children(signals: Signals) -> Children:
    return Children(signals, lambda: None, lambda pid, status: None)


@pytest.mark.parametrize(
    ("run", "exit_code"),
    [
        (lambda: None, 0),
        (lambda: 3, 3),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
    ],
    ids=["at its end", "with a code", "killed"],
)
def test_whoever_started_a_child_is_told_how_it_ended(
    children: Children, run: Callable[[], int], exit_code: int
) -> None:
    seen: List[int] = []
    children.start(run, seen.append)
    assert [os.waitstatus_to_exitcode(status) for status in reaped(children, seen)] == [exit_code]


def test_a_child_that_was_forked_elsewhere_is_buried_and_told_of(signals: Signals) -> None:
    seen: List[int] = []
    children = Children(signals, lambda: None, lambda pid, status: seen.extend((pid, status)))
    pid = os.fork()
    if not pid:
        os._exit(5)
    assert reaped(children, seen) == [pid, 5 << 8]


def test_signals_are_obeyed_before_a_child_is_buried(signals: Signals) -> None:
    order: List[str] = []
    children = Children(signals, lambda: order.append("obeyed"), lambda pid, status: None)
    seen: List[int] = []

    def ended(status: int) -> None:
        order.append("buried")
        seen.append(status)

    children.start(lambda: None, ended)
    reaped(children, seen)
    assert order == ["obeyed", "buried"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_child_is_ended_for_good_and_forgotten(children: Children, stopped: bool) -> None:
    seen: List[int] = []
    pid = children.start(wait_forever, seen.append)
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    children.end(pid)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    children.reap()
    assert seen == []


def test_another_is_started_at_once_until_too_many_have_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    timers, pacer, started = Timers(), Pacer(), []
    vitals = Vitals()
    respawning = Respawning(timers, vitals)
    for _ in range(FORKS_PER_SECOND + 1):
        respawning.another("worker 1", 1 << 8, pacer, lambda: started.append(1))
    timers.look(time.monotonic())
    assert len(started) == FORKS_PER_SECOND
    assert caplog.messages[0] == "worker 1 ended, exit code 1; starting another"
    assert caplog.messages[-1].endswith(" s, too many have ended")
    assert timers.due is not None
    timers.look(timers.due)
    assert len(started) == FORKS_PER_SECOND + 1
    assert vitals.respawns["worker"] == FORKS_PER_SECOND + 1


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (0, "log ended, exit code 0; starting another"),
        (70 << 8, "log ended, exit code 70; starting another"),
        (signal.SIGKILL, "log ended, signal 9 (Killed); starting another"),
    ],
)
def test_the_log_says_how_a_process_ended(
    caplog: pytest.LogCaptureFixture, status: int, line: str
) -> None:
    with caplog.at_level("INFO"):
        Respawning(Timers(), Vitals()).another("log", status, Pacer(), lambda: None)
    assert caplog.messages == [line]
