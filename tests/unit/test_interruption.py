"""A worker that is told to end now, or dies, at each instruction of a connection."""

from __future__ import annotations

import os
import re
import select
import signal
from pathlib import Path
from typing import Dict, List

import pytest

from tests.support.python import reported_by
from tests.support.timing import FULL_LENGTH
from vsock_proxy.serving.interruption import EndNow, Interruption

pytestmark = pytest.mark.hybrid_only  # what is interrupted is the same on both

Told = Dict[str, object]
GRAIN = "opcode" if FULL_LENGTH else "line"


def at_each_instruction(folder: Path, how: str) -> List[Told]:
    """What became of each connection."""
    told = reported_by("tests.support.interrupting", str(folder), GRAIN, how)
    assert len(told) > 100
    return told


def closing_lines(told: Told) -> List[str]:
    lines = told["log"]
    assert isinstance(lines, list)
    return [line for line in lines if re.search(" (ended|closed): ", line)]


@pytest.mark.parametrize("how", ["once", "again"])
def test_sigquit_at_whatever_instruction_ends_a_connection_as_it_says(
    how: str, tmp_path: Path
) -> None:
    said = set()
    for told in at_each_instruction(tmp_path, how):
        assert told["status"] == 0, told
        lines = closing_lines(told)
        assert lines == told["log"], told
        assert len(lines) == bool(told["accepted"]), told
        if not lines or " closed: " in lines[0]:
            assert told["counted"] == [0, 0], told
            continue
        up, down = re.findall(r"(\d+) bytes", lines[0])
        assert told["counted"] == [int(up), int(down)], told
        assert told["counted"] == [told["up"], told["down"]], told
        end = lines[0].split(" s, ")[1]
        assert told["seen"] == ("end" if end == "client closed" else "reset"), told
        said.add(end)
    assert said == {"client closed", "proxy ends now"}


def test_a_worker_killed_at_whatever_instruction_resets_what_is_left(
    tmp_path: Path,
) -> None:
    for told in at_each_instruction(tmp_path, "kill"):
        counted, lines = told["counted"], closing_lines(told)
        assert isinstance(counted, list)
        # What was sent in the last moment may not be counted, but nothing is counted twice.
        assert counted[0] <= int(str(told["up"])), told
        assert counted[1] <= int(str(told["down"])), told
        if told["up"] and not told["down"]:
            assert told["seen"] == "reset", told
        if lines:
            assert told["seen"] == "end", told


def test_what_is_wanted_breaks_off_a_wait_and_nothing_else() -> None:
    interruption = Interruption()
    interruption.want()
    interruption.want()
    with pytest.raises(EndNow):
        interruption.poll(select.poll(), 0)


def test_what_is_wanted_breaks_off_a_function_before_it_begins() -> None:
    interruption = Interruption()
    interruption.want()
    called: List[int] = []
    with pytest.raises(EndNow):
        interruption.during(called.append, 1)
    assert not called


def test_a_wait_that_ends_in_time_is_none_any_more() -> None:
    interruption = Interruption()
    assert interruption.poll(select.poll(), 0) == []
    assert interruption.during(os.getpid) == os.getpid()
    interruption.want()


def test_a_signal_in_a_wait_breaks_it_off_once() -> None:
    interruption = Interruption()
    before = signal.signal(signal.SIGALRM, lambda number, frame: interruption.want())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(EndNow):
            interruption.poll(select.poll(), 20_000)
        os.kill(os.getpid(), signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
