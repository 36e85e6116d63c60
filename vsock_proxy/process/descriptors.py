"""Descriptors: 0, 1 and 2 are always open, and a child closes what only its parent needs; pipes.

Some shells and supervisors start a program with 0, 1 or 2 closed (`2>&-`). The kernel gives out the
lowest number that is free. So the program would get its listener or a pipe under that number, and
write its log into it.
"""

from __future__ import annotations

import os
from typing import Iterable, Tuple

STANDARD = (0, 1, 2)
# If there is no /dev, the root folder: nothing can be read from it or written to it.
STAND_INS = ((os.devnull, os.O_RDWR), ("/", os.O_RDONLY))


def hold_standard_descriptors() -> None:
    """Open something under each of these numbers that is free. Call it before any other open()."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            _take_lowest()


def close_all(descriptors: Iterable[int]) -> None:
    """In a child: close what it has inherited and must not keep."""
    for fd in descriptors:
        os.close(fd)


def non_blocking_pipe() -> Tuple[int, int]:
    """The reader and the writer of a pipe, both non-blocking."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def _take_lowest() -> None:
    """Open a file without content, under the lowest number that is free."""
    for path, flags in STAND_INS:
        try:
            os.open(path, flags)
            return
        except OSError:
            continue
