"""A scoreboard with workers in the states that a test gives."""

from __future__ import annotations

from vsock_proxy.observing.scoreboard import Scoreboard

SECOND = 1_000_000_000


IDLE, BUSY, ABSENT = "idle", "busy", "absent"


def board_of(*workers: str) -> Scoreboard:
    """A scoreboard with these workers."""
    board = Scoreboard(len(workers))
    for number, what in enumerate(workers, 1):
        if what != ABSENT:
            board.claim(number, 1000 + number)
            board.set_busy(number, what == BUSY)
    return board
