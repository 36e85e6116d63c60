"""How many lines there may be in a second, with the clock handed in."""

from __future__ import annotations

import os
from typing import List, Sequence, Tuple

import pytest

from vsock_proxy.observing.limiter import SECOND, Limiter

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

# A monotonic clock that has been running for a while.
NOW = 1_000 * SECOND
TENTH = SECOND // 10
TABLE = {
    "as many as there are places": ([0, 0, 0], [True, True, True]),
    "one more is refused": ([0, 1, 2, 3], [True, True, True, False]),
    "until the first is a second ago": (
        [0, 1, 2, SECOND - 1, SECOND, SECOND],
        [True, True, True, False, True, False],
    ),
    "what was refused takes no place": (
        [0, 0, 0, *[TENTH] * 5, SECOND, SECOND, SECOND, SECOND],
        [True, True, True, *[False] * 5, True, True, True, False],
    ),
    "one every third of a second": (
        [index * (SECOND // 3 + 1) for index in range(8)],
        [True] * 8,
    ),
    "after a long silence all places are free": (
        [0, 0, 0, 60 * SECOND, 60 * SECOND, 60 * SECOND, 60 * SECOND],
        [True, True, True, True, True, True, False],
    ),
}


@pytest.mark.parametrize(("times", "allowed"), TABLE.values(), ids=TABLE.keys())
def test_a_second_has_as_many_lines_as_there_are_places(
    times: Sequence[int], allowed: List[bool]
) -> None:
    limiter = Limiter(3)
    assert [limiter.allow(NOW + time) for time in times] == allowed


@pytest.mark.parametrize("lines", [1, 2, 200])
def test_no_second_has_more_lines_than_the_bound_wherever_it_begins(lines: int) -> None:
    limiter = Limiter(lines)
    step = SECOND // (3 * lines)
    written = [time for time in range(NOW, NOW + 5 * SECOND, step) if limiter.allow(time)]
    assert len(written) > 3 * lines
    assert all(later - earlier >= SECOND for earlier, later in zip(written, written[lines:]))


def test_the_places_are_those_of_all_processes() -> None:
    limiter = Limiter(3)
    for _ in range(2):
        pid = os.fork()
        if not pid:
            allowed = False
            try:
                allowed = limiter.allow(NOW)
            finally:
                os._exit(not allowed)
        assert os.waitpid(pid, 0)[1] == 0
    assert [limiter.allow(NOW), limiter.allow(NOW)] == [True, False]


# Where a worker is held up between its two stores: the place that has the turn, what all places
# hold, and which of the lines are allowed that are asked for a tenth of a second later.
HELD_UP: List[Tuple[str, int, List[int], List[bool]]] = [
    ("the place was taken and the turn not passed on", 0, [NOW, 0, 0], [True, True, False]),
    ("two were held up so", 0, [NOW, NOW + 1, 0], [False, False, False]),
    ("all places are taken", 1, [NOW + 2, NOW, NOW + 1], [False, False, False]),
]


@pytest.mark.parametrize(
    ("turn", "taken", "allowed"), [row[1:] for row in HELD_UP], ids=[row[0] for row in HELD_UP]
)
def test_what_another_worker_was_held_up_in_is_mended_by_the_next_line(
    turn: int, taken: List[int], allowed: List[bool]
) -> None:
    limiter = Limiter(3)
    for place, time in enumerate([*taken, turn]):
        limiter._cells[place] = time
    assert [limiter.allow(NOW + TENTH) for _ in allowed] == allowed
    # A second later all is right again.
    assert [limiter.allow(NOW + 2 * SECOND) for _ in range(4)] == [True, True, True, False]
