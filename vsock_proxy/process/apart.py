"""Runs a function in a process of its own; its result comes back over a pipe.

It is for a function that may take too long for this process, or may never return. A lookup hangs
with its name server, and no signal interrupts it. A file may be too hard for its parser. The
process can be killed at any time, and its death harms nothing else.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
from types import TracebackType
from typing import Callable, Generic, Optional, Tuple, Type, TypeVar

from vsock_proxy.errors import ProxyError
from vsock_proxy.process.forking import fork
from vsock_proxy.process.signals import Signals
from vsock_proxy.process.titles import set_title

CHUNK = 1 << 20

T = TypeVar("T")


class Died(ProxyError):
    """The process ended without a result; the text says how."""


class Apart(Generic[T]):
    """One call of a function, begun at once. The caller closes it; it is a context manager.

    pid: the process.
    reader: a descriptor that is readable once receive() has something to do.
    """

    def __init__(
        self,
        signals: Signals,
        title: str,
        function: Callable[[], T],
        expected: Tuple[Type[Exception], ...] = (ProxyError,),
    ) -> None:
        """
        title: what `ps` shows of the process; only the master is found by the program's name.
        function: its result or its exception is pickled.
        expected: the exceptions that it may raise; others are internal errors of the process.

        Raises OSError if no process can be made.
        """
        self._received = bytearray()
        self._status: Optional[int] = None
        self.reader, writer = os.pipe()

        def child() -> None:
            os.close(self.reader)
            set_title(title)
            _write_all(writer, pickle.dumps(_outcome(function, expected)))

        try:
            self.pid = fork(signals, child)
        except OSError:
            os.close(self.reader)
            raise
        finally:
            os.close(writer)

    def wait(self, seconds: float) -> bool:
        """Wait at most this time until receive() has something to do; returns whether it has."""
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        return bool(poll.poll(int(seconds * 1000)))

    def receive(self) -> bool:
        """Read the next part of the result, waiting for it; True once the result is whole."""
        chunk = os.read(self.reader, CHUNK)
        self._received += chunk
        return not chunk

    def result(self) -> T:
        """The function's result; waits for it. Raises the function's exception, or Died."""
        while not self.receive():
            pass
        exit_code = os.waitstatus_to_exitcode(self._bury())
        # A process that was killed while it wrote leaves only a part of its result.
        if exit_code or not self._received:
            raise Died(_how(exit_code))
        value, error = pickle.loads(self._received)
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def buried(self, status: int) -> None:
        """Note that another place has waited for the process, with this status of waitpid(2)."""
        self._status = status

    def abandon(self) -> None:
        """Kill the process and do not wait: a process that hangs in the kernel may never die.

        The code that waits for every child waits for it.
        """
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)

    def close(self) -> None:
        """Kill the process and wait for it, if it has not ended yet."""
        os.close(self.reader)
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._bury()

    def __enter__(self) -> Apart[T]:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _bury(self) -> int:
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)
        return self._status


def _outcome(
    function: Callable[[], T], expected: Tuple[Type[Exception], ...]
) -> Tuple[Optional[T], Optional[Exception]]:
    try:
        return function(), None
    except expected as error:
        return None, error


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _how(exit_code: int) -> str:
    if exit_code < 0:
        return f"ended by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return f"ended with exit code {exit_code}"
