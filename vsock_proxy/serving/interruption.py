"""Ending a connection now, at a place where that does no harm.

A signal's handler runs between any two instructions. If it raised there, bytes that were sent might
not be counted, and the end of a connection might stop halfway. So it raises only while the process
waits; at any other time it makes the next wait raise.
"""

from __future__ import annotations

import select
from typing import Callable, List, Optional, Tuple, TypeVar

T = TypeVar("T")


class EndNow(BaseException):
    """The connection must end now."""


class Interruption:
    """Raises EndNow in a wait, at most once in each.

    wanted: whether an end is wanted; once it is, it stays so.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._waiting = False

    def want(self) -> None:
        """In a signal's handler: end the present wait, or the next one."""
        self.wanted = True
        if self._waiting:
            self._waiting = False
            raise EndNow

    def poll(self, poll: select.poll, timeout: Optional[float]) -> List[Tuple[int, int]]:
        """poll.poll(timeout). Raises EndNow."""
        # In this order: if want() comes in between, one of the two sees it.
        self._waiting = True
        try:
            if self.wanted:
                raise EndNow
            return poll.poll(timeout)
        finally:
            self._waiting = False

    def during(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that may be interrupted anywhere. Raises EndNow."""
        self._waiting = True
        try:
            if self.wanted:
                raise EndNow
            return function(*arguments)
        finally:
            self._waiting = False
