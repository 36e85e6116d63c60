"""How many lines there may be in a second, with the clock handed in."""

from __future__ import annotations

import os
from typing import List, Tuple

import pytest

from vsock_proxy.observing.limiter import SECOND, Limiter

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

# Places, moments in seconds, and whether a line may be written then.
TABLE = {
    "one a second": (
        1,
        [(0.0, True), (0.0, False), (0.999, False), (1.0, True), (1.5, False), (2.0, True)],
    ),
    "each place is free a second after it was taken": (
        2,
        [(0.0, True), (0.5, True), (0.9, False), (1.0, True), (1.4, False), (1.5, True)],
    ),
    "all at once": (3, [(0.0, True)] * 3 + [(0.9, False)] * 3 + [(1.0, True)] * 3 + [(1.0, False)]),
    "what was refused takes no place": (
        3,
        [(0.0, True)] * 3 + [(0.999, False)] * 9 + [(1.0, True)] * 3,
    ),
    "as seldom as they may be": (3, [(0.334 * index, True) for index in range(9)]),
    "another process looked at the clock a little earlier": (
        1,
        [(5.0, True), (4.9, False), (6.0, True)],
    ),
    "after a long silence no more than ever": (
        2,
        [(0.0, True), (1000.0, True), (1000.0, True), (1000.0, False)],
    ),
}


@pytest.mark.parametrize(("places", "tries"), TABLE.values(), ids=TABLE.keys())
def test_no_second_has_more_lines_than_there_are_places(
    places: int, tries: List[Tuple[float, bool]]
) -> None:
    limiter = Limiter(places)
    # Not long after the machine was switched on.
    start = SECOND // 2
    for moment, allowed in tries:
        assert limiter.allow(start + round(moment * SECOND)) is allowed, moment


@pytest.mark.parametrize("places", [1, 2, 200])
def test_no_second_has_more_lines_than_there_are_places_wherever_it_begins(places: int) -> None:
    limiter = Limiter(places)
    step = SECOND // (3 * places)
    written = [time for time in range(SECOND, 6 * SECOND, step) if limiter.allow(time)]
    assert len(written) > 3 * places
    assert all(later - earlier >= SECOND for earlier, later in zip(written, written[places:]))


def test_the_places_are_those_of_all_processes() -> None:
    limiter = Limiter(3)
    for _ in range(2):
        pid = os.fork()
        if not pid:
            allowed = False
            try:
                allowed = limiter.allow(SECOND)
            finally:
                os._exit(not allowed)
        assert os.waitpid(pid, 0)[1] == 0
    assert [limiter.allow(SECOND), limiter.allow(SECOND)] == [True, False]


# Who is held up between its two stores


@pytest.mark.parametrize("places", [2, 3, 200])
def test_a_worker_that_has_taken_a_place_and_not_passed_the_turn_on_holds_up_nobody(
    places: int,
) -> None:
    limiter = Limiter(places)
    turn = limiter._cells[places]
    assert limiter.allow(SECOND)
    # As another worker finds it that looked before.
    limiter._cells[places] = turn
    allowed = [limiter.allow(SECOND + 1 + number) for number in range(places)]
    assert allowed == [True] * (places - 1) + [False]


def test_two_workers_that_have_not_passed_the_turn_on_hold_others_up_for_a_second_at_most() -> None:
    limiter = Limiter(3)
    turn = limiter._cells[3]
    assert limiter.allow(SECOND)
    assert limiter.allow(SECOND + 1)
    limiter._cells[3] = turn
    assert not limiter.allow(SECOND + 2)
    assert [limiter.allow(2 * SECOND + 1) for _ in range(4)] == [True, True, True, False]
