"""How children learn that the master is gone, however it died.

Only the master holds the writing end of a pipe, so the kernel closes that end when the master dies.
A child that sleeps until something happens watches the pipe too. A worker with a connection lets
the kernel send it a signal, which costs nothing until then.
"""

from __future__ import annotations

import fcntl
import os
import select
from typing import Optional


class Lifeline:
    """The pipe, made by the master before the first fork.

    reader: readable once the master is gone.
    writer: for the master alone; a child closes its copy.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._own: Optional[int] = None

    def signal_when_cut(self, number: int) -> None:
        """Let the kernel send this process a signal when the master is gone; at once if it is gone.

        The kernel keeps one receiver for each open file (F_SETOWN and F_SETSIG of fcntl(2)), and
        forked processes share open files. So the pipe is opened once more, which proc(5) allows.
        """
        try:
            self._own = own = os.open(f"/proc/self/fd/{self.reader}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            # No /proc here, or no descriptor left. The worker sees the pipe after the connection.
            return
        fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own, fcntl.F_SETSIG, number)
        fcntl.fcntl(own, fcntl.F_SETFL, os.O_ASYNC)
        wait = select.poll()
        wait.register(own, 0)
        if wait.poll(0):
            os.kill(os.getpid(), number)

    def signal_no_more(self) -> None:
        """Undo signal_when_cut(), if that was done."""
        if self._own is not None:
            os.close(self._own)
            self._own = None
