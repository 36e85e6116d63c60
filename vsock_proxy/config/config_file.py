"""Reading the operator's file whole, without waiting for somebody who may never come.

open() of a FIFO waits for a writer, and read() of a terminal waits for a line. So the file is
opened non-blocking. At start it may be a pipe, as in `--config <(...)`, and its writer has some
time. Later it must be a regular file, because a process that waits for its configuration serves
nobody. The checks look at the open file, because its path may lead elsewhere a moment later.
"""

from __future__ import annotations

import os
import select
import stat
import time
from typing import List

MAX_SIZE = 1 << 20
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unreadable(Exception):
    """The file cannot be read; the text says why."""


def read(path: str, patience: float) -> bytes:
    """The content of the file. Raises Unreadable.

    patience: seconds within which a pipe must be written; 0: it must be a regular file.
    """
    try:
        # O_NOCTTY: a terminal must not become the controlling terminal of this process.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Unreadable(_why_not_opened(path, error)) from None
    try:
        mode = os.fstat(fd).st_mode
        if not patience and not stat.S_ISREG(mode):
            raise Unreadable(_not_regular(mode))
        return _content(fd, time.monotonic() + patience)
    except TimeoutError:
        raise Unreadable(f"not written to its end within {patience:g} s") from None
    except OSError as error:
        raise Unreadable(os.strerror(error.errno or 0)) from None
    finally:
        os.close(fd)


def _content(fd: int, deadline: float) -> bytes:
    parts: List[bytes] = []
    size = 0
    while size <= MAX_SIZE:
        try:
            part = os.read(fd, MAX_SIZE + 1 - size)
        except BlockingIOError:
            _await(fd, deadline)
            continue
        parts.append(part)
        size += len(part)
        if not part:
            if size or not _has_yet_to_be_written(fd):
                return b"".join(parts)
            _await(fd, deadline)
    raise Unreadable(f"larger than {MAX_SIZE} bytes")


def _has_yet_to_be_written(fd: int) -> bool:
    """Whether a file with nothing to read still waits for its first writer."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return False
    try:
        # A pipe without a name has writers from the beginning.
        named = not os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    except OSError:
        named = True
    # The kernel reports a hang-up only after there was a writer (pipe_poll() in fs/pipe.c).
    return named and not any(event & select.POLLHUP for event in _events(fd, 0))


def _await(fd: int, deadline: float) -> None:
    """Wait until there is something to read, or the end of the file. Raises TimeoutError."""
    if not _events(fd, max(0.0, deadline - time.monotonic())):
        raise TimeoutError


def _events(fd: int, seconds: float) -> List[int]:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return [event for _, event in poll.poll(seconds * 1000)]


def _why_not_opened(path: str, error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = 0
    # open(2) of a socket fails with: No such device or address.
    return _not_regular(mode) if stat.S_ISSOCK(mode) else os.strerror(error.errno or 0)


def _not_regular(mode: int) -> str:
    kind = next((name for is_kind, name in KINDS if is_kind(mode)), "something else")
    return f"is {kind}, where a regular file is expected"
