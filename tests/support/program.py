"""The real program as a child process: started, observed through /proc and its log, and ended."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Dict, Iterator, List, Optional, Sequence, Union

from tests.support import processes
from tests.support.timing import SLOWNESS, wait_until
from tests.support.transports import Hybrid, Tcp, Vsock

PROJECT = Path(__file__).resolve().parents[2]
Transport = Union[Hybrid, Vsock, Tcp]
# How a line about a connection begins.
ID = r"#\d+-\d+ "


def command(*arguments: str) -> List[str]:
    """The program with these arguments, run by this interpreter."""
    return [sys.executable, "-m", "vsock_proxy", *arguments]


def run(
    *arguments: str,
    timeout: float = 20.0,
    environment: Optional[Dict[str, str]] = None,
    wrapper: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*wrapper, *command(*arguments)],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout * SLOWNESS,
        check=False,
    )


class Log:
    """The lines that a process has written so far, read by a thread."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: List[str] = []
        self._stream = stream
        self._changed = threading.Condition()
        self._may_read = threading.Event()
        self._may_read.set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def unread(self) -> Iterator[None]:
        """While this lasts, nobody reads what the process writes."""
        self._may_read.clear()
        try:
            yield
        finally:
            self._may_read.set()

    def wait_for(self, pattern: str, timeout: float = 10.0, count: int = 1) -> List[str]:
        """The lines that match, once there are `count` of them."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self.matching(pattern)) >= count, timeout * SLOWNESS
            ):
                text = "\n".join(self.lines[-40:])
                raise AssertionError(f"fewer than {count} lines match {pattern!r} in\n{text}")
            return self.matching(pattern)

    def matching(self, pattern: str) -> List[str]:
        """The lines that match, at the moment."""
        return [line for line in self.lines if re.search(pattern, line)]

    def join(self) -> None:
        """Wait for the end of the stream."""
        self._thread.join(20 * SLOWNESS)

    def only_line(self) -> str:
        """The one line that there is at the end of the stream."""
        self.join()
        assert len(self.lines) == 1, self.lines
        return self.lines[0]

    def _read(self) -> None:
        # A terminal ends with an error.
        with contextlib.suppress(OSError):
            for line in self._stream:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
                self._may_read.wait()


class Proxy:
    """One running proxy."""

    def __init__(
        self,
        transport: Transport,
        arguments: Sequence[str],
        environment: Optional[Dict[str, str]] = None,
        wrapper: Sequence[str] = (),
        stderr: int = subprocess.PIPE,
        program: Sequence[str] = (),
    ) -> None:
        """
        stderr: a descriptor of the caller; log then has no lines until read_log_from().
        program: the command to run, if not the source with this interpreter.
        """
        self.transport = transport
        self._process = subprocess.Popen(
            [*wrapper, *(program or command()), *arguments],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
        )
        self.log = Log(self._process.stderr or io.StringIO())
        self._seen: List[int] = []

    def read_log_from(self, stream: IO[str]) -> None:
        """Read the lines of a proxy with a stderr of the caller from this stream."""
        self.log = Log(stream)

    @property
    def pid(self) -> int:
        """The master's pid."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it accepts connections."""
        self.log.wait_for(r"info master: .*, \d+ workers?$|\"event\":\"serving\"")

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """A client's connection to it."""
        return self.transport.connect(port)

    def send(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(timeout * SLOWNESS)

    def has_ended(self) -> bool:
        """Whether the master has ended."""
        return self._process.poll() is not None

    def titles(self) -> List[str]:
        """The titles of the master's children."""
        return [processes.title(pid) for pid in self.children()]

    def children(self) -> List[int]:
        """The pids of all children of the master."""
        found = processes.children(self.pid)
        self._seen += [pid for pid in found if pid not in self._seen]
        return found

    def wait_for_child(self, title: str) -> int:
        """The pid of the only child whose title begins like this, once there is exactly one."""

        def found() -> List[int]:
            pids = [pid for pid in self.children() if processes.title(pid).startswith(title)]
            return pids if len(pids) == 1 else []

        (pid,) = wait_until(found, f"one process with the title {title!r}")
        return pid

    def workers(self, title: str = "") -> List[int]:
        """The pids of the workers whose title contains a text."""
        return [
            pid
            for pid in self.children()
            if processes.title(pid).startswith("vsock-proxy: worker")
            and title in processes.title(pid)
        ]

    def wait_for_workers(self, count: int, title: str = "", timeout: float = 10.0) -> List[int]:
        """Wait until exactly this number of workers have a text in their title; their pids."""
        return wait_until(
            lambda: self._if_so_many(count, title),
            f"{count} workers with {title!r} in their titles",
            timeout,
        )

    def _if_so_many(self, count: int, title: str) -> Optional[List[int]]:
        found = self.workers(title)
        return found if len(found) == count else None

    def end(self) -> None:
        """End it if it runs, and leave none of its processes."""
        self.children()
        if not self.has_ended():
            self.send(signal.SIGQUIT)
            self.wait()
        # Children are gone a moment after a master that was killed.
        for pid in self._seen:
            wait_until(
                lambda pid=pid: not processes.title(pid).startswith("vsock-proxy"),  # type: ignore[misc]
                f"process {pid} of the proxy is gone",
            )
        self.log.join()
