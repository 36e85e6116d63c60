"""Signals as something to poll.

A handler may run between any two instructions, so it does next to nothing: it notes the signal in a
set and wakes the loop, which acts on it where it chooses to. A set, because what matters is that a
signal came and not how often: a thousand SIGHUP are one reload, and none can push another out. The
pipe only wakes, so it does no harm when it is full.

The interpreter writes to the pipe the moment a signal comes (signal.set_wakeup_fd), which ends a
poll() that is about to begin; but it calls the handler only later, so the handler writes once more.
Whoever has been woken finds the signal in the set, then or when woken again.

What has no meaning here is ignored: by default SIGUSR2 or SIGALRM would end the process, and
SIGTTOU would stop one that writes its log to a terminal.

A child keeps the handlers of its parent, which all lead here, and only takes a pipe of its own:
setting each signal anew would cost every worker 100 KiB of pages of its own.
"""

from __future__ import annotations

import os
import signal
from typing import Callable, List, Set, TypeVar

from vsock_proxy.process.descriptors import non_blocking_pipe
from vsock_proxy.process.interpreter import set_signal_mask
from vsock_proxy.process.kernel import SIGSTKFLT

# What the master acts on, in this order: who is to end neither replaces workers nor reloads first.
# A terminal's Ctrl-C and systemd's KillMode=control-group reach the children too; those do what
# their master tells them, and nothing for the others.
HANDLED = (
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGUSR1,
)
ENDING = frozenset((signal.SIGQUIT, signal.SIGTERM, signal.SIGINT))
# Not among them: what a fault of the process itself raises, what stops and continues it, and
# SIGXCPU, by which a limit that somebody has set ends it.
IGNORED = (
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGTTIN,
    signal.SIGTTOU,
    SIGSTKFLT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)

T = TypeVar("T")


class Interrupted(BaseException):
    """A signal that asks for the end came while something else was awaited."""


def block() -> None:
    """Hold the handled signals back."""
    set_signal_mask(signal.SIG_BLOCK, HANDLED)


def unblock() -> None:
    """Let them come, those held back first."""
    set_signal_mask(signal.SIG_UNBLOCK, HANDLED)


class Signals:
    """The signals caught by this process.

    reader: a descriptor that is readable once there are some to take.
    on_interrupt: called with a signal's number at once, between any two instructions.
    """

    def __init__(self) -> None:
        self.on_interrupt: Callable[[int], None] = ignore
        self._pending: Set[int] = set()
        self._open()
        for number in HANDLED:
            signal.signal(number, self._caught)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # Who started this may have left some blocked, and a mask outlives execve(2).
        set_signal_mask(signal.SIG_SETMASK, ())

    def take(self) -> List[int]:
        """The signals that came since the last call, each once, in the order of HANDLED."""
        try:
            os.read(self.reader, 4096)
        except BlockingIOError:
            pass
        taken: List[int] = [number for number in HANDLED if number in self._pending]
        self._pending.difference_update(taken)
        return taken

    def unless_told_to_end(self, wait: Callable[[], T]) -> T:
        """Call a function that may take long, and return what it returns.

        Raises Interrupted, in the middle of it, if a signal of ENDING comes or has come; that
        stays to be taken. The others wait.
        """
        try:
            self.on_interrupt = self._interrupt
            if self._pending & ENDING:
                self._interrupt(signal.SIGTERM)
            return wait()
        finally:
            self.on_interrupt = ignore

    def inherit(self) -> None:
        """In a child: leave the parent's pipe and signals, and have a pipe of its own."""
        self.close()
        self._pending.clear()
        self._open()

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.reader)
        os.close(self._writer)

    def _open(self) -> None:
        self.reader, self._writer = non_blocking_pipe()
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _caught(self, number: int, frame: object) -> None:
        self._pending.add(number)
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            # Full of what wakes as well.
            pass
        self.on_interrupt(number)

    def _interrupt(self, number: int) -> None:
        if number in ENDING:
            # Once: a second signal must not break off the cleaning up after the first.
            self.on_interrupt = ignore
            raise Interrupted


def ignore(number: int) -> None:
    """Leave a signal to the loop."""
