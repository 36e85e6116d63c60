"""How many lines there may be in a second, with the clock handed in."""

from __future__ import annotations

import os
from typing import Callable, List, Tuple

import pytest

from vsock_proxy.observing.limiter import LOOKS, SECOND, Limiter

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
def test_no_second_has_more_lines_than_places_wherever_it_begins(places: int) -> None:
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


# Who is held up between its stores


@pytest.mark.parametrize("places", [4, 5, 200])
@pytest.mark.parametrize("overtaking", range(LOOKS))
def test_a_turn_that_was_set_back_or_not_passed_on_holds_up_nobody(
    overtaking: int, places: int
) -> None:
    limiter = Limiter(places)
    turn = limiter._cells[places]
    assert all(limiter.allow(SECOND + number) for number in range(overtaking))
    limiter._cells[places] = turn
    allowed = [limiter.allow(2 * SECOND - 1) for _ in range(places)]
    assert allowed == [True] * (places - overtaking) + [False] * overtaking


def test_a_turn_that_was_set_back_further_is_right_again_after_a_second() -> None:
    limiter = Limiter(2 * LOOKS)
    turn = limiter._cells[2 * LOOKS]
    assert all(limiter.allow(SECOND + number) for number in range(LOOKS))
    limiter._cells[2 * LOOKS] = turn
    assert not limiter.allow(SECOND + LOOKS)
    assert [limiter.allow(2 * SECOND + LOOKS) for _ in range(2 * LOOKS)] == [True] * 2 * LOOKS


class _HeldUp:
    """The cells as a worker sees them that is held up between taking a place and the turn."""

    def __init__(self, cells: memoryview, meanwhile: Callable[[], object]) -> None:
        self._cells, self._meanwhile = cells, meanwhile

    def __getitem__(self, place: int) -> int:
        return int(self._cells[place])

    def __setitem__(self, place: int, value: int) -> None:
        self._cells[place] = value
        meanwhile, self._meanwhile = self._meanwhile, lambda: None
        meanwhile()


def test_a_worker_that_was_overtaken_leaves_the_turn_to_the_others() -> None:
    places = 100
    limiter, held_up = Limiter(places), Limiter(places)
    overtaking = [SECOND + 1] * (places // 2)
    held_up._cells = _HeldUp(  # type: ignore[assignment]
        limiter._cells, lambda: [limiter.allow(moment) for moment in overtaking]
    )
    assert held_up.allow(SECOND)
    allowed = [limiter.allow(SECOND + 2) for _ in range(places)]
    assert allowed.count(True) == places - len(overtaking) - 1
