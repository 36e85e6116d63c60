"""A process between the log and a stderr that could make its writers wait.

It is needed only if stderr cannot be opened again (stderr.py). All other processes send their lines
to a socket, which never makes them wait. Only this process waits for stderr. It ends after all
others. It tries again to write a line that it could not write, so it loses nothing. If the socket
is full, the senders count the lines that they lose.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Callable, Optional

from vsock_proxy.observing.stderr import MOST, STDERR, Stderr
from vsock_proxy.process.forking import fork
from vsock_proxy.process.signals import Signals
from vsock_proxy.process.titles import set_title

# Seconds between two tries after an error of stderr: at first, and at most.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
# Seconds for the last lines, once all other processes have ended.
LAST_WORDS = 1.0


class Copier:
    """The process and the socket that leads to it; for the master."""

    def __init__(self, stderr: Stderr, signals: Signals) -> None:
        self.pid: Optional[int] = None
        self._stderr = stderr
        self._signals = signals
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self, leave: Callable[[], None] = lambda: None) -> None:
        """Start the process, or another. leave: closes what it must not hold.

        Raises OSError if no process can be started.
        """

        def child() -> None:
            leave()
            self._near.close()
            set_title("log")
            _copy(self._far)

        self.pid = fork(self._signals, child)
        self._stderr.send_to(self._near)

    @property
    def descriptor(self) -> int:
        """The descriptor that only the master and this process may hold."""
        return self._far.fileno()

    def finish(self) -> None:
        """Let the process write what it has, then end it. All others must have ended before."""
        self._stderr.write_directly()
        self._near.close()
        deadline = time.monotonic() + LAST_WORDS
        ended = select.poll()
        ended.register(self._signals.reader, select.POLLIN)
        while self.pid is not None and not os.waitpid(self.pid, os.WNOHANG)[0]:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return
            ended.poll(seconds * 1000)
            self._signals.take()


def _copy(source: socket.socket) -> None:
    """Write what comes, until all senders are gone and nothing is left."""
    room = select.poll()
    room.register(STDERR, select.POLLOUT)
    # Reports only that all senders are gone.
    gone = select.poll()
    gone.register(source, 0)
    room_or_gone = select.poll()
    room_or_gone.register(STDERR, select.POLLOUT)
    room_or_gone.register(source, 0)
    pause = FIRST_PAUSE
    line = source.recv(MOST)
    while line:
        room_or_gone.poll()
        if not room.poll(0) and not room.poll(LAST_WORDS * 1000):
            return
        try:
            os.write(STDERR, line)
        except OSError:
            if gone.poll(pause * 1000):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            continue
        pause = FIRST_PAUSE
        line = source.recv(MOST)
