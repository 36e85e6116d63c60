"""The master's side of untold.py: one line for all processes, at most once a second.

If a line cannot be written, the master tries again when poll() says that there is room. So a log
that nobody reads wakes nobody. If poll() cannot know (a full disk, a reader that is gone), or was
wrong, the master tries again after a while, and then less and less often.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from typing import Dict, Optional

from vsock_proxy.observing.limiter import LINES_PER_SECOND
from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.untold import KINDS, LEFT_OUT, NOT_ACCEPTED, UNWRITTEN
from vsock_proxy.words import counted

# Seconds: from the first event of a kind to its line, and between two such lines.
GATHERING = 0.1
INTERVAL = 1.0
LONGEST_INTERVAL = 60.0

LEVELS = {LEFT_OUT: logging.WARNING, UNWRITTEN: logging.WARNING, NOT_ACCEPTED: logging.ERROR}
TEXTS = {
    LEFT_OUT: "%(lines)s left out, more than %(most)d a second",
    UNWRITTEN: "%(lines)s of the log could not be written: %(reason)s",
    NOT_ACCEPTED: "cannot accept: %(reason)s; going on (%(attempts)s failed)",
}
EVENTS = {LEFT_OUT: "lines_left_out", UNWRITTEN: "lines_lost", NOT_ACCEPTED: "accept_failed"}
UNREAD = "nobody read it in time"


class Teller:
    """
    due: when to call look(), by time.monotonic(); None: not at all.
    """

    def __init__(self, log_output: Log) -> None:
        self.due: Optional[float] = None
        self._log = log_output
        self._untold = log_output.untold
        self._told = [0] * KINDS
        self._last = -INTERVAL
        self._patience = INTERVAL
        self._awaits_room = False
        self._polls = False

    def watch_by(self, poll: select.poll) -> None:
        """Call this before a wait: registers with this poll() what the master waits for."""
        poll.register(self._untold.reader, select.POLLIN)
        if self._awaits_room:
            poll.register(self._log.stderr.fd, select.POLLOUT)
            self._polls = True
        elif self._polls:
            poll.unregister(self._log.stderr.fd)
            self._polls = False

    def told_by(self, fd: int, now: float) -> None:
        """poll() has returned a descriptor; it may be one of this class."""
        if fd == self._untold.reader:
            os.read(fd, 4096)
            self.begin(now)
        elif fd == self._log.stderr.fd:
            self.look(now)

    def begin(self, now: float) -> None:
        """There is something to tell."""
        if not self._untold.looked_at:
            self._untold.looked_at = True
            self.due = max(now + GATHERING, self._last + INTERVAL)

    def look(self, now: float) -> None:
        """Log what is new, or find out when that may be possible."""
        had_room, self._awaits_room = self._awaits_room, False
        before = list(self._told)
        code = self._log.finish_line() or self._tell()
        if code:
            self._untold.because(UNWRITTEN, code)
        if code == errno.EAGAIN:
            self._awaits_room = not had_room
            self.due = now + INTERVAL if had_room else None
        elif code:
            self.due = now + self._patience
            self._patience = min(2 * self._patience, LONGEST_INTERVAL)
        else:
            self._patience = INTERVAL
            self._go_on(now, self._told != before)

    def _tell(self) -> int:
        totals = self._untold.totals()
        for kind, total in enumerate(totals):
            if total == self._told[kind]:
                continue
            known = self._known(kind, total - self._told[kind])
            code = self._log.write(LEVELS[kind], TEXTS[kind], known)
            if code:
                return code
            self._told[kind] = total
        return 0

    def _known(self, kind: int, number: int) -> Dict[str, object]:
        known: Dict[str, object] = {"event": EVENTS[kind], "count": number}
        if kind == LEFT_OUT:
            lines = f"{counted(number, 'line')} {'was' if number == 1 else 'were'}"
            return {**known, "lines": lines, "most": LINES_PER_SECOND}
        code = self._untold.code(kind)
        if kind == UNWRITTEN:
            known["lines"] = counted(number, "line")
        else:
            known["attempts"] = counted(number, "attempt")
        unread = kind == UNWRITTEN and code == errno.EAGAIN
        return {**known, "reason": UNREAD if unread else os.strerror(code), "errno": code}

    def _go_on(self, now: float, told: bool) -> None:
        if told:
            self._last = now
            self.due = now + INTERVAL
            return
        self.due = None
        # Before the look: a process that counts after it has to wake the master.
        self._untold.looked_at = False
        if self._untold.totals() != self._told or self._untold.is_torn:
            self.begin(now)
