"""Signals as something to poll.

A handler may run between any two instructions, so it does next to nothing: it adds the signal to a
set and wakes the loop, which acts on it at a place of its choice. It is a set, because it only
matters that a signal came, and not how often: a thousand SIGHUP are one reload, and none can push
another out. The pipe only wakes, so it does no harm when it is full.

The interpreter writes to the pipe as soon as a signal comes (signal.set_wakeup_fd), so even a
poll() that is about to begin ends. But it calls the handler only later, so the handler writes once
more. The loop finds the signal in the set after the first or the second of these bytes.

Signals without a meaning here are ignored. By default SIGUSR2 or SIGALRM would end the process, and
SIGTTOU would stop a process that writes its log to a terminal.

A child keeps its parent's handlers, which all lead here, and only makes a pipe of its own. To set
each signal again would cost every worker 100 KiB of pages of its own.
"""

from __future__ import annotations

import os
import signal
from typing import Callable, List, Set, TypeVar

from vsock_proxy.process.descriptors import non_blocking_pipe
from vsock_proxy.process.interpreter import set_signal_mask
from vsock_proxy.process.kernel import SIGSTKFLT

# The master acts on them in this order, so that it ends before it replaces workers or reloads.
# Ctrl-C in a terminal and systemd's KillMode=control-group reach the children too. Children act
# only on the signals that the master sends them, and ignore the others.
HANDLED = (
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGUSR1,
)
ENDING = frozenset((signal.SIGQUIT, signal.SIGTERM, signal.SIGINT))
# Not ignored: signals for a fault of the process itself, signals that stop and continue it, and
# SIGXCPU, which reports a limit that somebody has set to end it.
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
    """A signal that asks for the end came during another wait."""


def block() -> None:
    """Hold back the handled signals."""
    set_signal_mask(signal.SIG_BLOCK, HANDLED)


def unblock() -> None:
    """Let them come again, first those held back."""
    set_signal_mask(signal.SIG_UNBLOCK, HANDLED)


class Signals:
    """The signals caught by this process.

    reader: a descriptor that is readable once there are signals to take.
    on_interrupt: called at once with a signal's number, between any two instructions.
    """

    def __init__(self) -> None:
        self.on_interrupt: Callable[[int], None] = ignore
        self._pending: Set[int] = set()
        self._open()
        for number in HANDLED:
            signal.signal(number, self._caught)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # The program that started this one may have blocked some, and a mask outlives execve(2).
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

        If a signal of ENDING comes or has come, this raises Interrupted in the middle of the
        function, and take() still returns that signal. The other signals wait.
        """
        try:
            self.on_interrupt = self._interrupt
            if self._pending & ENDING:
                self._interrupt(signal.SIGTERM)
            return wait()
        finally:
            self.on_interrupt = ignore

    def inherit(self) -> None:
        """In a child: leave the parent's pipe and signals, and make a pipe of its own."""
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
            # It is full, so its bytes wake the loop anyway.
            pass
        self.on_interrupt(number)

    def _interrupt(self, number: int) -> None:
        if number in ENDING:
            # Only once: a second signal must not interrupt the cleaning up after the first.
            self.on_interrupt = ignore
            raise Interrupted


def ignore(number: int) -> None:
    """Do nothing now: the loop takes the signal."""
