"""Reading the allowlist again, while connections are served and the master must not wait.

It is read and parsed by a process of its own, which may take long, hang in a file system that is
gone, or die of what is in the file, and harms nothing then. It has so much time; after that it is
killed and not waited for, because what hangs in the kernel does not die at once.

There is one reading at a time. Who asks meanwhile has one more after it, as the file may have
changed since it was opened.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from typing import Callable, Optional

from vsock_proxy.config import loading
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.errors import ConfigurationError
from vsock_proxy.process.apart import Apart, Died
from vsock_proxy.process.signals import Signals

# Seconds.
TIMEOUT = 10.0

log = logging.getLogger(__name__)


class Reloading:
    """Reads when asked to.

    due: when look() is to be called, by time.monotonic(); None: not at all.
    """

    def __init__(
        self,
        signals: Signals,
        poll: select.poll,
        path: str,
        leave_master: Callable[[], None],
        take_over: Callable[[Allowlist], None],
        done: Callable[[], None],
    ) -> None:
        """
        poll: what the master sleeps in; told_by() is for what it finds.
        leave_master: called in the child.
        take_over: called with what was read.
        done: called when nothing is left to be read, whatever came of it.
        """
        self.due: Optional[float] = None
        self._signals = signals
        self._poll = poll
        self._path = path
        self._leave_master = leave_master
        self._take_over = take_over
        self._done = done
        self._reading: Optional[Apart[Allowlist]] = None
        self._again = False

    def ask(self, now: float) -> None:
        """Read the file, now or once more after the reading that is under way."""
        if self._reading is not None:
            self._again = True
            return
        self._again = False
        try:
            self._reading = Apart(self._signals, "reload", self._read, (ConfigurationError,))
        except OSError as error:
            self._complain(f"cannot start a process to read it: {error.strerror}")
            self._done()
            return
        self._poll.register(self._reading.reader, select.POLLIN)
        self.due = now + TIMEOUT

    def told_by(self, fd: int, now: float) -> None:
        """A descriptor is readable: take what was read, if it is that."""
        reading = self._reading
        if reading is None or fd != reading.reader or not reading.receive():
            return
        self._forget()
        try:
            with reading:
                found = reading.result()
        except ConfigurationError as error:
            log.error("%s; the allowlist stays as it was", error)
        except Died as error:
            self._complain(f"the process that read it {error}")
        else:
            self._take_over(found)
        self._go_on(now)

    def buried(self, pid: int, status: int) -> None:
        """A child of this process was waited for; it may be that which reads."""
        if self._reading is not None and pid == self._reading.pid:
            self._reading.buried(status)

    def look(self, now: float) -> None:
        """Give a reading up that has taken too long."""
        if self.due is not None and self.due <= now:
            self._abandon()
            self._complain(f"not read within {TIMEOUT:g} s")
            self._go_on(now)

    def stop(self) -> None:
        """Read no more."""
        self._again = False
        self._abandon()

    def leave(self) -> None:
        """In another child: close what only the master may hold."""
        if self._reading is not None:
            os.close(self._reading.reader)

    def _read(self) -> Allowlist:
        """In the child."""
        self._leave_master()
        # It must not outlive a master that is killed.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(TIMEOUT) + 1)
        return loading.load(self._path, patience=0).allowlist

    def _abandon(self) -> None:
        if self._reading is not None:
            reading = self._reading
            self._forget()
            reading.abandon()

    def _forget(self) -> None:
        if self._reading is not None:
            self._poll.unregister(self._reading.reader)
        self._reading = self.due = None

    def _go_on(self, now: float) -> None:
        if self._again:
            self.ask(now)
        else:
            self._done()

    def _complain(self, problem: str) -> None:
        log.error("allowlist %s: %s; the allowlist stays as it was", self._path, problem)
