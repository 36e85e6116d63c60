"""A function in a process of its own, whose result comes back over a pipe.

For what may take longer than this process may be away, or may not come back at all: a lookup that a
name server keeps hanging, and that no signal interrupts; a file that is a puzzle to its parser. The
process can be killed at any time, and if it dies, nothing else does.
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
    """One call of a function, begun at once. To be closed, for which it is a context manager.

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
        title: what `ps` shows of the process; by the name of the program only the master is found.
        function: what it returns, or raises, is pickled.
        expected: the exceptions that it may raise; others are internal errors of the process.

        Raises OSError if there can be no process.
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
        """Wait until receive() has something to do, at most this time; whether it has."""
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        return bool(poll.poll(int(seconds * 1000)))

    def receive(self) -> bool:
        """Read what there is of the result, after waiting for it; True once it is whole."""
        chunk = os.read(self.reader, CHUNK)
        self._received += chunk
        return not chunk

    def result(self) -> T:
        """What the function returned; waits for it. Raises what it raised, or Died."""
        while not self.receive():
            pass
        exit_code = os.waitstatus_to_exitcode(self._bury())
        # Killed in the middle of writing, it leaves a part of its result.
        if exit_code or not self._received:
            raise Died(_how(exit_code))
        value, error = pickle.loads(self._received)
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def buried(self, status: int) -> None:
        """The process was waited for elsewhere, with this status of waitpid(2)."""
        self._status = status

    def abandon(self) -> None:
        """End the process without waiting for that, as what hangs in the kernel may never die.

        It is left to who waits for every child.
        """
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.reader)

    def close(self) -> None:
        """End the process, if it has not ended."""
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
