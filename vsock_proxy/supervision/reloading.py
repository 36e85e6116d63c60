"""Reading the file again, while connections are served and the master must not wait.

A process of its own reads, parses and judges the file. It may take long, hang in a file system that
is gone, or die of what is in the file: that harms nothing. After TIMEOUT it is killed. The master
does not wait for its end, because a process that hangs in the kernel does not die at once.

There is one reading at a time.

The list may permit the command line's one service only by its addresses, and DNS may not answer.
Then what was read waits. Such processes judge it again and again, until DNS has answered or another
file has been read.
"""

from __future__ import annotations

import logging
import select
import signal
from typing import Callable, List, Optional, Tuple

from vsock_proxy.endpoint.policy import NotPermitted
from vsock_proxy.errors import ProxyError, UnavailableError, advice
from vsock_proxy.process.apart import Apart, Died
from vsock_proxy.process.signals import Signals
from vsock_proxy.settings import Settings
from vsock_proxy.supervision.judging import Judged, Wanted, warn_of_doubts

# Seconds: for one reading; of these for the instance metadata, which leaves time to report that it
# did not answer; and between two attempts to judge what waits for DNS.
TIMEOUT = 10.0
METADATA_PATIENCE = 4.0
JUDGE_AGAIN = 1.0

log = logging.getLogger(__name__)

Found = Tuple[Wanted, Tuple[Judged, ...]]


class Reloading:
    """Reads when asked to.

    due: when look() is to be called, by time.monotonic(); None: not at all.
    """

    def __init__(
        self,
        settings: Settings,
        signals: Signals,
        poll: select.poll,
        read: Callable[[Optional[Wanted]], Found],
        take_over: Callable[[Wanted, Tuple[Judged, ...]], None],
        refuse: Callable[[NotPermitted], None],
    ) -> None:
        """
        poll: the master sleeps in it, and calls told_by() for what it finds.
        read: called in the child, which SIGALRM ends. It reads the file and judges it, or judges
        what was read before.
        take_over: called with the services to serve from now on. Raises UnavailableError if they
        cannot be served; then nothing has changed.
        refuse: called if the service of the command line is not permitted any more.
        """
        self.due: Optional[float] = None
        self._path = settings.config
        self._kept = (
            "the services stay as they were"
            if settings.service is None
            else "the allowlist stays as it was"
        )
        self._signals = signals
        self._poll = poll
        self._read = read
        self._take_over = take_over
        self._refuse = refuse
        self._reading: Optional[Apart[Found]] = None
        # What was read and waits for DNS, and whether the running process judges that again.
        self._waiting: Optional[Wanted] = None
        self._is_retry = False

    @property
    def is_reading(self) -> bool:
        """Whether the file is being read. False while what was read waits for DNS."""
        return self._reading is not None and not self._is_retry

    def ask(self, now: float) -> None:
        """Read the file. No reading may be under way."""
        self._abandon()
        try:
            self._begin(None, now)
        except OSError as error:
            self._complain(f"cannot start a process to read it: {error.strerror}{advice(error)}")
            self._go_on(now)

    def told_by(self, fd: int, now: float) -> None:
        """A descriptor is readable. If it is that of the reading process, take the result."""
        reading = self._reading
        if reading is None or fd != reading.reader or not reading.receive():
            return
        is_retry = self._is_retry
        self._forget()
        try:
            with reading:
                wanted, judged = reading.result()
        except NotPermitted as error:
            self._waiting = None
            self._refuse(error)
        except Died as error:
            # What is judged again goes on waiting, and the log says so already.
            if not is_retry:
                self._complain(f"the process that read it {error}")
        except ProxyError as error:
            log.error(
                "%(reason)s; %(kept)s",
                {"event": "reload_failed", "reason": error, "kept": self._kept},
            )
        else:
            self._judged(wanted, judged, is_retry)
        self._go_on(now)

    def buried(self, pid: int, status: int) -> None:
        """A child of the master has ended and is buried; it may be the one that reads."""
        if self._reading is not None and pid == self._reading.pid:
            self._reading.buried(status)

    def look(self, now: float) -> None:
        """Give up a reading that takes too long, or judge again what waits for DNS."""
        if self.due is None or self.due > now:
            return
        if self._reading is None:
            self._retry(now)
            return
        is_retry = self._is_retry
        if not is_retry:
            self._complain(f"not read within {TIMEOUT:g} s")
        self._abandon()
        self._go_on(now)

    def stop(self) -> None:
        """Read no more."""
        self._waiting = None
        self._abandon()

    @property
    def descriptors(self) -> List[int]:
        """The descriptors that only the master may hold."""
        return [] if self._reading is None else [self._reading.reader]

    def _begin(self, waiting: Optional[Wanted], now: float) -> None:
        """Raises OSError if no process can be started."""

        def child() -> Found:
            # It must not outlive its time, even if the master dies first.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(TIMEOUT) + 1)
            return self._read(waiting)

        self._reading = Apart(self._signals, "reload", child)
        self._is_retry = waiting is not None
        self._poll.register(self._reading.reader, select.POLLIN)
        self.due = now + TIMEOUT

    def _retry(self, now: float) -> None:
        if self._waiting is None:
            return
        try:
            self._begin(self._waiting, now)
        except OSError:
            self.due = now + JUDGE_AGAIN

    def _judged(self, wanted: Wanted, judged: Tuple[Judged, ...], is_retry: bool) -> None:
        undecided = [one for one in judged if one.unresolved]
        had_waited = self._waiting is not None
        if undecided and not wanted.of_file:
            self._waiting = wanted
            if not is_retry:
                self._say_what_it_waits_for(undecided[0])
            return
        self._waiting = None
        try:
            self._take_over(wanted, judged)
        except UnavailableError as error:
            log.error(
                "%(reason)s; %(kept)s",
                {"event": "reload_failed", "reason": error, "kept": self._kept},
            )
            return
        if not is_retry and not wanted.of_file:
            log.info("allowlist read again", {"event": "reloaded"})
        if had_waited or (judged[0].by_dns and not wanted.of_file):
            log.info(
                "%(path)s permits %(upstream)s; it is in force now",
                {
                    "event": "allowlist_in_force",
                    "path": self._path,
                    "upstream": judged[0].policy.endpoint,
                },
            )
        elif undecided:
            warn_of_doubts(judged)

    def _say_what_it_waits_for(self, judged: Judged) -> None:
        endpoint = judged.policy.endpoint
        log.info("allowlist read again", {"event": "reloaded"})
        log.warning(
            "%(path)s permits no known address of %(upstream)s, and %(host)s does not resolve: "
            "%(reason)s; the list from before stays in force until DNS answers",
            {
                "event": "allowlist_awaits_dns",
                "path": self._path,
                "upstream": endpoint,
                "host": endpoint.host,
                "reason": judged.unresolved,
            },
        )

    def _abandon(self) -> None:
        if self._reading is not None:
            reading = self._reading
            self._forget()
            reading.abandon()

    def _forget(self) -> None:
        if self._reading is not None:
            self._poll.unregister(self._reading.reader)
        self._reading = self.due = None
        self._is_retry = False

    def _go_on(self, now: float) -> None:
        if self._waiting is not None:
            self.due = now + JUDGE_AGAIN

    def _complain(self, problem: str) -> None:
        log.error(
            "file %(path)s: %(reason)s; %(kept)s",
            {
                "event": "reload_failed",
                "path": self._path,
                "reason": problem,
                "kept": self._kept,
            },
        )
