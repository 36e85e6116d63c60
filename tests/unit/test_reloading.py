"""Reading the file again: in time, one at a time, whatever becomes of the reader, or of DNS."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from ipaddress import ip_network
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from tests.support.timing import SLOWNESS, let_pass
from vsock_proxy.config.allowlist import Allowlist, Entry
from vsock_proxy.endpoint.addresses import make_address
from vsock_proxy.endpoint.policy import NotPermitted
from vsock_proxy.errors import ConfigurationError, UnavailableError
from vsock_proxy.process.signals import Signals
from vsock_proxy.settings import Endpoint, ServiceSettings, Settings
from vsock_proxy.supervision import reloading
from vsock_proxy.supervision.judging import Judged, Known, Wanted, judge_again
from vsock_proxy.supervision.reloading import Reloading

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

HOST, PORT = "192.0.2.1", 443
LIST = Allowlist("list", (Entry(PORT, network=ip_network(HOST)),))
OTHER = Allowlist("list", (Entry(PORT, network=ip_network("192.0.2.2")),))
# A top level that there is not (RFC 2606).
NAME = "endpoint.invalid"
Read = Callable[[], Allowlist]


class Master:
    """As much of one as a reading needs.

    read: what reading the file is.
    """

    def __init__(self, signals: Signals) -> None:
        self.read: Read = lambda: LIST
        self.host = HOST
        self.known: Callable[[], Known] = dict
        self.taken: List[Tuple[Judged, ...]] = []
        self.refused: List[NotPermitted] = []
        self.cannot_serve: Optional[UnavailableError] = None
        self.poll = select.poll()
        self.reloading = Reloading(
            Settings(self.service, config="list"),
            signals,
            self.poll,
            self._read,
            self._take_over,
            self.refused.append,
        )

    @property
    def service(self) -> ServiceSettings:
        return ServiceSettings(8000, Endpoint(self.host, PORT))

    @property
    def lists(self) -> List[Allowlist]:
        """Those taken over."""
        return [judged.policy.allowlist for (judged,) in self.taken]

    def _read(self, waiting: Optional[Wanted]) -> Tuple[Wanted, Tuple[Judged, ...]]:
        wanted = waiting or Wanted(self.read(), (self.service,), of_file=False)
        return wanted, judge_again(wanted, self.known())

    def _take_over(self, wanted: Wanted, judged: Tuple[Judged, ...]) -> None:
        if self.cannot_serve:
            raise self.cannot_serve
        self.taken.append(judged)

    def ask(self) -> None:
        self.reloading.ask(time.monotonic())

    def run_until_read(self) -> None:
        self.run_until(lambda: not self.reloading.is_reading)

    def run_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20 * SLOWNESS
        while not condition() and time.monotonic() < deadline:
            for fd, _ in self.poll.poll(10):
                self.reloading.told_by(fd, time.monotonic())
            self.reloading.look(time.monotonic())
        assert condition()


@pytest.fixture
def master(signals: Signals) -> Master:
    return Master(signals)


def messages(caplog: pytest.LogCaptureFixture) -> List[str]:
    return [record.getMessage() for record in caplog.records]


def malformed() -> Allowlist:
    raise ConfigurationError("allowlist list: bad")


def die() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> Any:
    raise AssertionError


def hang() -> Any:
    let_pass(60, why="it hangs")


def test_what_was_read_is_taken_over(master: Master) -> None:
    master.ask()
    master.run_until_read()
    assert master.reloading.due is None
    assert master.lists == [LIST]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (malformed, "allowlist list: bad; the allowlist stays as it was"),
        (
            die,
            "file list: the process that read it ended by signal 9 (Killed); "
            "the allowlist stays as it was",
        ),
        (
            fail,
            "file list: the process that read it ended with exit code 70; "
            "the allowlist stays as it was",
        ),
        (hang, "file list: not read within 0.2 s; the allowlist stays as it was"),
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
    master.read = function
    master.ask()
    master.run_until_read()
    assert master.reloading.due is None
    assert messages(caplog) == [line]
    assert not master.taken


def test_what_was_read_and_cannot_be_served_is_one_line(
    master: Master, caplog: pytest.LogCaptureFixture
) -> None:
    master.cannot_serve = UnavailableError("cannot serve: Too many open files")
    master.ask()
    master.run_until_read()
    assert messages(caplog) == ["cannot serve: Too many open files; the allowlist stays as it was"]
    assert master.reloading.due is None


def test_it_says_whether_the_file_is_being_read(master: Master) -> None:
    said = [master.reloading.is_reading]
    master.ask()
    said.append(master.reloading.is_reading)
    master.run_until_read()
    assert master.reloading.due is None
    said.append(master.reloading.is_reading)
    assert said == [False, True, False]


def test_a_reading_that_is_stopped_is_over_at_once(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    master.read = hang
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
    master.read = lambda: LIST
    master.ask()
    pid, status = os.waitpid(-1, 0)
    master.reloading.buried(pid, status)
    master.run_until_read()
    assert master.reloading.due is None
    assert master.lists == [LIST]


# What DNS must decide


def known_as(master: Master, host: str) -> None:
    """What is known of the name's address."""
    question = (master.service.endpoint, socket.AF_UNSPEC)
    address = make_address(socket.AF_INET, (host, PORT))
    master.known = lambda: {question: [address]}


class Judgements:
    """How often a list was judged, counted by the processes that do it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._made = 0

    def count(self, known: Callable[[], Known]) -> Callable[[], Known]:
        """The same function, of which each call counts."""

        def counted() -> Known:
            os.write(self.writer, b"x")
            return known()

        return counted

    def made(self) -> int:
        """How many were made until now."""
        try:
            self._made += len(os.read(self.reader, 1000))
        except BlockingIOError:
            pass
        return self._made


@pytest.fixture
def judgements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judgements]:
    monkeypatch.setattr(reloading, "JUDGE_AGAIN", 0.01)
    counted = Judgements()
    yield counted
    os.close(counted.reader)
    os.close(counted.writer)


@pytest.fixture
def waiting(master: Master, caplog: pytest.LogCaptureFixture) -> Master:
    """One that has read a list which DNS cannot judge now."""
    caplog.set_level("INFO")
    master.host = NAME
    known_as(master, "192.0.2.2")
    master.ask()
    master.run_until_read()
    return master


def test_a_list_that_dns_must_judge_and_cannot_is_said_once_and_waits(
    waiting: Master, caplog: pytest.LogCaptureFixture
) -> None:
    assert not waiting.taken
    assert not waiting.refused
    assert waiting.reloading.due is not None
    said = [record.getMessage() for record in caplog.get_records("setup")]
    assert said[0] == "allowlist read again"
    assert said[1].startswith(
        f"list permits no known address of {NAME}:443, and {NAME} does not resolve: "
    )
    assert said[1].endswith("; the list from before stays in force until DNS answers")
    assert len(said) == 2


def test_what_waits_is_judged_again_without_a_word_until_it_is_decided(
    waiting: Master, judgements: Judgements, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    waiting.read = fail
    waiting.known = judgements.count(dict)
    waiting.run_until(lambda: judgements.made() >= 3)
    assert not caplog.records
    known_as(waiting, HOST)
    waiting.run_until(lambda: bool(waiting.taken))
    assert waiting.lists == [LIST]
    assert messages(caplog) == [f"list permits {NAME}:443; it is in force now"]
    assert waiting.reloading.due is None


def test_what_waits_goes_on_waiting_whatever_becomes_of_who_judges_it(
    waiting: Master, judgements: Judgements, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    waiting.known = judgements.count(die)
    waiting.run_until(lambda: judgements.made() >= 3)
    assert not caplog.records
    known_as(waiting, HOST)
    waiting.run_until(lambda: bool(waiting.taken))


def test_a_bad_file_does_not_put_an_end_to_what_waits(waiting: Master) -> None:
    waiting.read = malformed
    waiting.ask()
    waiting.run_until_read()
    known_as(waiting, HOST)
    waiting.run_until(lambda: bool(waiting.taken))


def test_who_asks_does_not_wait_for_what_is_judged_again(
    waiting: Master, judgements: Judgements
) -> None:
    waiting.known = judgements.count(hang)
    waiting.run_until(lambda: judgements.made() == 1)
    waiting.known = dict
    waiting.host, waiting.read = HOST, lambda: LIST
    waiting.ask()
    waiting.run_until_read()
    assert waiting.lists == [LIST]
    assert waiting.reloading.due is None


def test_an_endpoint_that_is_not_permitted_any_more_is_refused(master: Master) -> None:
    master.read = lambda: OTHER
    master.ask()
    master.run_until_read()
    assert master.reloading.due is None
    assert not master.taken
    assert "192.0.2.1:443 is not permitted by list; the closest entry is " in str(master.refused[0])
