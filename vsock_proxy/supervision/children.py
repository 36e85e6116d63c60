"""The master's children: how they are forked, buried and ended, whatever each is for."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Callable, Dict, Optional

from vsock_proxy.observing.vitals import Vitals
from vsock_proxy.process.forking import fork
from vsock_proxy.process.signals import Signals
from vsock_proxy.supervision.pacer import Pacer
from vsock_proxy.supervision.timers import Timers

# Seconds that the master waits for a child that it has killed.
END_TIMEOUT = 0.5
# Seconds until the master tries again to start a child.
START_AGAIN = 1.0

log = logging.getLogger(__name__)

Ended = Callable[[int], None]


class Children:
    """All children of this process, each with a function to call at its end."""

    def __init__(
        self,
        signals: Signals,
        before_burial: Callable[[], None],
        others: Callable[[int, int], None],
    ) -> None:
        """
        before_burial: called each time a child has ended, before anything else learns of it.
        others: called with pid and status of a child that was not forked here.
        """
        self._signals = signals
        self._before_burial = before_burial
        self._others = others
        self._ended: Dict[int, Ended] = {}

    def start(self, run: Callable[[], Optional[int]], ended: Ended) -> int:
        """Fork a child that runs a function, and return its pid. Raises OSError.

        ended: called with its status from waitpid(2).
        """
        pid = fork(self._signals, run)
        self._ended[pid] = ended
        return pid

    def reap(self) -> None:
        """Bury all that have ended."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            # If a signal to the whole group ended it, this process got that signal before.
            self._before_burial()
            pid, status = os.waitpid(dead.si_pid, 0)
            if pid in self._ended:
                self._ended.pop(pid)(status)
            else:
                self._others(pid, status)

    def end(self, pid: int) -> None:
        """End a child for good, at once, and forget it.

        Not by SIGTERM: a stopped process would not see it. A process that still exists after
        END_TIMEOUT hangs in the kernel, and never runs again.
        """
        del self._ended[pid]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + END_TIMEOUT
        while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline:
            time.sleep(0.001)


class Respawning:
    """Replaces a process that has ended by another."""

    def __init__(self, timers: Timers, vitals: Vitals) -> None:
        self._timers = timers
        self._vitals = vitals

    def another(self, name: str, status: int, pacer: Pacer, start: Callable[[], None]) -> None:
        """Start one as soon as its pacer permits. status: how the one before ended."""
        now = time.monotonic()
        when = pacer.next(now)
        exit_code = os.waitstatus_to_exitcode(status)
        # A worker that a signal asked to end did nothing wrong.
        level = logging.WARNING if exit_code else logging.INFO
        later = f" in {when - now:.1f} s, too many have ended" if when > now else ""
        kind, _, worker = name.partition(" ")
        self._vitals.count_respawn(kind)
        log.log(
            level,
            "%(name)s ended, %(reason)s; starting another%(later)s",
            {
                "event": f"{kind}_died" if exit_code else f"{kind}_ended",
                "worker": worker or None,
                "name": name,
                "reason": _cause(exit_code),
                "later": later,
            },
        )
        self._timers.at(when, start)


def _cause(exit_code: int) -> str:
    if exit_code < 0:
        return f"signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return f"exit code {exit_code}"
