"""Ending a connection now, at a place where that does no harm.

A signal's handler runs between any two instructions. Would it raise there, bytes that were sent
might not be counted, and the end of a connection be broken off. So it raises only while the process
waits, and otherwise makes the next wait raise.
"""

from __future__ import annotations

import select
from typing import Callable, List, Optional, Tuple, TypeVar

T = TypeVar("T")


class EndNow(BaseException):
    """The connection is to end now."""


class Interruption:
    """Raises EndNow in a wait, at most once in each.

    wanted: whether it is wanted; it stays so.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._waiting = False

    def want(self) -> None:
        """In a signal's handler: end what waits, or what will."""
        self.wanted = True
        if self._waiting:
            self._waiting = False
            raise EndNow

    def poll(self, poll: select.poll, timeout: Optional[float]) -> List[Tuple[int, int]]:
        """poll.poll(timeout). Raises EndNow."""
        # In this order: what is wanted in between is seen by one of the two.
        self._waiting = True
        try:
            if self.wanted:
                raise EndNow
            return poll.poll(timeout)
        finally:
            self._waiting = False

    def during(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that may be broken off anywhere. Raises EndNow."""
        self._waiting = True
        try:
            if self.wanted:
                raise EndNow
            return function(*arguments)
        finally:
            self._waiting = False
