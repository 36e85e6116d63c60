"""How a connection ended, as a function of what was seen of both sides.

The outcome says only what was seen. "A side ended its direction" means that the proxy handed all
that this side had sent to the kernel for the other side. What the other side's kernel did with it,
the proxy cannot know.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import Dict, Tuple


# IntEnum, because the hash of any other Enum is a function in Python.
class Seen(enum.IntEnum):
    """What was seen of one side.

    CLOSED: it ended its direction.
    BROKEN: an error when reading from it, when writing to it, or pending on its socket; or it was
    gone before it had taken everything.
    """

    OPEN = enum.auto()
    CLOSED = enum.auto()
    BROKEN = enum.auto()


class Side(enum.IntEnum):
    """The two sides of a connection."""

    CLIENT = enum.auto()
    ENDPOINT = enum.auto()


class End(enum.Enum):
    """Why a connection ended, in the words of the log."""

    CLIENT_CLOSED = "client closed"
    ENDPOINT_CLOSED = "endpoint closed"
    CLIENT_RESET = "client reset"
    ENDPOINT_RESET = "endpoint reset"
    IDLE = "idle timeout"
    HALF_CLOSED_IDLE = "nothing came after the half-close"
    CUT = "proxy ends now"

    def __str__(self) -> str:
        return self.value


OPEN, CLOSED, BROKEN = Seen
# docs/reference.md says the same in words. If only one side ended, that side is wholly gone, and
# nothing waits for it.
ENDS: Dict[Tuple[Seen, Seen], Tuple[End, End]] = {
    # client, endpoint: the end if the client was first, the end if the endpoint was
    (CLOSED, OPEN): (End.CLIENT_CLOSED, End.CLIENT_CLOSED),
    (OPEN, CLOSED): (End.ENDPOINT_CLOSED, End.ENDPOINT_CLOSED),
    (CLOSED, CLOSED): (End.CLIENT_CLOSED, End.ENDPOINT_CLOSED),
    (BROKEN, OPEN): (End.CLIENT_RESET, End.CLIENT_RESET),
    (BROKEN, CLOSED): (End.CLIENT_RESET, End.CLIENT_RESET),
    (OPEN, BROKEN): (End.ENDPOINT_RESET, End.ENDPOINT_RESET),
    (CLOSED, BROKEN): (End.ENDPOINT_RESET, End.ENDPOINT_RESET),
    (BROKEN, BROKEN): (End.CLIENT_RESET, End.ENDPOINT_RESET),
}
CLEAN = (End.CLIENT_CLOSED, End.ENDPOINT_CLOSED)


@dataclass(frozen=True)
class Outcome:
    """How a connection ended; code is the errno of the reset, 0 if there is none."""

    end: End
    code: int = 0

    @property
    def clean(self) -> bool:
        """Whether both sides must see an end. If not, they must see a reset."""
        return self.end in CLEAN

    def __str__(self) -> str:
        return f"{self.end.value} ({os.strerror(self.code)})" if self.code else self.end.value


def judge(client: Seen, endpoint: Seen, first: Side) -> End:
    """The end of a connection. first: the side with the first fault, or else the first end."""
    return ENDS[client, endpoint][first is Side.ENDPOINT]
