"""Signals as something to poll.

A handler may run between any two instructions, so it does next to nothing; the interpreter writes
the signal's number to a pipe (signal.set_wakeup_fd), and the loop acts on it where it chooses to.

A child keeps the handlers of its parent, which all lead here, and only takes a pipe of its own:
setting each signal anew would cost every worker 100 KiB of pages of its own.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import signal
from typing import Callable, List

# What the master acts on. A terminal's Ctrl-C and systemd's KillMode=control-group reach the
# children too; those do what their master tells them, and nothing for the others.
HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGCHLD,
)


def block() -> None:
    """Hold the handled signals back."""
    _signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def unblock() -> None:
    """Let them come, those held back first.

    Not by signal.pthread_sigmask(): that is a layer over this which makes enums of the old mask,
    and costs every worker 80 KiB of pages of its own.
    """
    _signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


class Signals:
    """The signals caught by this process.

    reader: a descriptor that is readable once there are some to take.
    on_interrupt: called with a signal's number at once, between any two instructions.

    Both are attributes, since each function that a child runs costs it some pages of its own.
    """

    def __init__(self) -> None:
        self.on_interrupt: Callable[[int], None] = ignore
        for number in HANDLED:
            signal.signal(number, self._caught)
        self._open()

    def take(self) -> List[int]:
        """The signals since the last call, oldest first."""
        try:
            return list(os.read(self.reader, 4096))
        except BlockingIOError:
            return []

    def inherit(self) -> None:
        """In a child: leave the parent's pipe and have one of its own."""
        os.close(self.reader)
        os.close(self._writer)
        self._open()

    def _open(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _caught(self, number: int, frame: object) -> None:
        self.on_interrupt(number)


def ignore(number: int) -> None:
    """Leave a signal to the loop."""
