"""A function in a process of its own: its result, its errors, and its end."""

from __future__ import annotations

import os
import signal
from typing import Callable

import pytest

from tests.support import processes
from vsock_proxy.errors import ConfigurationError
from vsock_proxy.process.apart import Apart, Died
from vsock_proxy.process.signals import Signals

pytestmark = pytest.mark.hybrid_only


def fail() -> None:
    raise ConfigurationError("not so")


def test_the_result_comes_back_whole(signals: Signals) -> None:
    with Apart(signals, "test", lambda: "x" * 3_000_000) as apart:
        assert apart.result() == "x" * 3_000_000


def test_an_expected_error_is_raised_here(signals: Signals) -> None:
    with Apart(signals, "test", fail) as apart, pytest.raises(ConfigurationError, match="not so"):
        apart.result()


@pytest.mark.parametrize(
    ("function", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"signal 9 \(Killed\)"),
        (lambda: os._exit(3), "exit code 3"),
    ],
    ids=["signal", "exit"],
)
def test_a_process_that_dies_says_how(
    signals: Signals, function: Callable[[], None], how: str
) -> None:
    with Apart(signals, "test", function) as apart, pytest.raises(Died, match=how):
        apart.result()


def test_a_process_that_dies_in_the_middle_of_its_result_says_how(signals: Signals) -> None:
    with Apart(signals, "test", lambda: "x" * 3_000_000) as apart:
        # More than a pipe holds, so that it waits for somebody to read the rest.
        assert apart.wait(10)
        os.kill(apart.pid, signal.SIGKILL)
        with pytest.raises(Died, match=r"signal 9 \(Killed\)"):
            apart.result()


def test_closing_it_leaves_no_process(signals: Signals) -> None:
    reader, writer = os.pipe()
    apart = Apart(signals, "test", lambda: os.read(reader, 1))
    apart.close()
    assert processes.state(apart.pid) is None
    os.close(reader)
    os.close(writer)


def test_a_process_that_was_waited_for_elsewhere_is_not_killed_again(signals: Signals) -> None:
    with Apart(signals, "test", lambda: 1) as apart:
        _, status = os.waitpid(apart.pid, 0)
        apart.buried(status)
        assert apart.result() == 1


def test_one_that_is_abandoned_is_killed_and_left_to_be_buried(signals: Signals) -> None:
    reader, writer = os.pipe()
    apart = Apart(signals, "test", lambda: os.read(reader, 1))
    apart.abandon()
    _, status = os.waitpid(apart.pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    os.close(reader)
    os.close(writer)


def test_one_that_was_buried_is_not_killed_when_it_is_abandoned(signals: Signals) -> None:
    apart = Apart(signals, "test", lambda: 1)
    _, status = os.waitpid(apart.pid, 0)
    apart.buried(status)
    # To kill a process that is gone raises.
    apart.abandon()
