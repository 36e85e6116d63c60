"""Reading the allowlist again: in time, one at a time, whatever becomes of the reader."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Callable, List

import pytest

from vsock_proxy.config import loading
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.errors import ConfigurationError
from vsock_proxy.process.signals import Signals
from vsock_proxy.supervision import reloading
from vsock_proxy.supervision.reloading import Reloading

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

EMPTY = Allowlist("list", ())


class Master:
    """As much of one as a reading needs."""

    def __init__(self, signals: Signals) -> None:
        self.taken: List[Allowlist] = []
        self.done = 0
        self.poll = select.poll()
        self.reloading = Reloading(
            signals, self.poll, "list", lambda: None, self.taken.append, self._note
        )

    def _note(self) -> None:
        self.done += 1

    def ask(self) -> None:
        self.reloading.ask(time.monotonic())

    def run_until_done(self) -> None:
        deadline = time.monotonic() + 20
        while not self.done and time.monotonic() < deadline:
            for fd, _ in self.poll.poll(10):
                self.reloading.told_by(fd, time.monotonic())
            self.reloading.look(time.monotonic())
        assert self.done == 1
        assert self.reloading.due is None


@pytest.fixture
def master(signals: Signals) -> Master:
    return Master(signals)


def reading(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Allowlist]) -> None:
    """Let that be what reading the file is."""
    monkeypatch.setattr(
        loading, "load", lambda path, patience: loading.Configuration(path, function(), [])
    )


def messages(caplog: pytest.LogCaptureFixture) -> List[str]:
    return [record.getMessage() for record in caplog.records]


def malformed() -> Allowlist:
    raise ConfigurationError("allowlist list: bad")


def die() -> Allowlist:
    os.kill(os.getpid(), signal.SIGKILL)
    return EMPTY


def fail() -> Allowlist:
    raise AssertionError


def hang() -> Allowlist:
    time.sleep(60)
    return EMPTY


def test_what_was_read_is_taken_over(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    reading(monkeypatch, lambda: EMPTY)
    master.ask()
    master.run_until_done()
    assert master.taken == [EMPTY]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (malformed, "allowlist list: bad; the allowlist stays as it was"),
        (
            die,
            "allowlist list: the process that read it ended by signal 9 (Killed); "
            "the allowlist stays as it was",
        ),
        (
            fail,
            "allowlist list: the process that read it ended with exit code 70; "
            "the allowlist stays as it was",
        ),
        (hang, "allowlist list: not read within 0.2 s; the allowlist stays as it was"),
    ],
)
def test_a_reading_that_fails_is_one_line(
    master: Master,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    function: Callable[[], Allowlist],
    line: str,
) -> None:
    monkeypatch.setattr(reloading, "TIMEOUT", 0.2 if function is hang else 20.0)
    reading(monkeypatch, function)
    master.ask()
    master.run_until_done()
    assert messages(caplog) == [line]
    assert not master.taken


def test_who_asks_during_a_reading_has_one_more_after_it(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()

    def wait_for_a_byte() -> Allowlist:
        os.read(reader, 1)
        return EMPTY

    reading(monkeypatch, wait_for_a_byte)
    for _ in range(5):
        master.ask()
    os.write(writer, b"xx")
    master.run_until_done()
    assert master.taken == [EMPTY, EMPTY]
    os.close(reader)
    os.close(writer)


def test_a_reading_that_is_stopped_is_over_at_once(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, hang)
    master.ask()
    master.ask()
    began = time.monotonic()
    master.reloading.stop()
    _, status = os.waitpid(-1, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert time.monotonic() - began < 5
    assert not master.poll.poll(0)
    assert not master.taken


def test_a_reader_that_was_waited_for_elsewhere_is_not_waited_for_again(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, lambda: EMPTY)
    master.ask()
    pid, status = os.waitpid(-1, 0)
    master.reloading.buried(pid, status)
    master.run_until_done()
    assert master.taken == [EMPTY]
