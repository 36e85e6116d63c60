"""Descriptors: 0, 1 and 2 are there, a child has none that is its parent's alone; and pipes.

0, 1 and 2 must be there whatever the program was started with.

The kernel gives out the lowest number that is free. Started with one of them closed, as some shells
and supervisors do (`2>&-`), a program would get its listener or a pipe under that number, and write
its log into it.
"""

from __future__ import annotations

import os
from typing import Iterable, Tuple

STANDARD = (0, 1, 2)
# Of the root folder, where there is no /dev, nothing can be read and nothing written to it.
STAND_INS = ((os.devnull, os.O_RDWR), ("/", os.O_RDONLY))


def hold_standard_descriptors() -> None:
    """Put something under each of their numbers that is free. Nothing may be opened before."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            _take_lowest()


def close_all(descriptors: Iterable[int]) -> None:
    """In a child: close what it has inherited and is not to have."""
    for fd in descriptors:
        os.close(fd)


def non_blocking_pipe() -> Tuple[int, int]:
    """A pipe's reader and writer, on which nobody waits."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def _take_lowest() -> None:
    """Open what reads and writes nothing, under the lowest number that is free."""
    for path, flags in STAND_INS:
        try:
            os.open(path, flags)
            return
        except OSError:
            continue
