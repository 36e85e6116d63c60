"""An endpoint that has a name: the name, its addresses, and what workers do with it."""

from __future__ import annotations

from typing import List

from tests.support import board
from tests.support.program import Proxy

NAME = "endpoint.test"

HERE, THERE = "127.0.0.2", "127.0.0.3"


def states(proxy: Proxy) -> List[str]:
    """What the workers do."""
    return [row.state for row in board.ask(proxy)]
