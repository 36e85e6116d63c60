"""Signals as something to poll.

A handler may run between any two instructions, so it does nothing; the interpreter writes the
signal's number to a pipe (signal.set_wakeup_fd), and the loop acts on it where it chooses to.
"""

from __future__ import annotations

import os
import signal
from typing import Iterable, List


class SignalPipe:
    """The signals caught by this process, as a descriptor that becomes readable."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _nothing)

    def fileno(self) -> int:
        """What to poll."""
        return self._reader

    def take(self) -> List[signal.Signals]:
        """The signals since the last call, oldest first."""
        try:
            return [signal.Signals(number) for number in os.read(self._reader, 4096)]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close both ends: in a child, whose signals must not wake its parent."""
        os.close(self._reader)
        os.close(self._writer)


def _nothing(number: int, frame: object) -> None:
    """So that the signal is caught at all."""
