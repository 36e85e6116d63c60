"""Lines cut to what can be written at once, and their number bounded, as tables."""

from __future__ import annotations

from typing import List, Tuple

import pytest

from vsock_proxy.observing.limiter import SECOND, Limiter
from vsock_proxy.observing.stderr import MOST, pieces

LONG = "x" * (MOST - 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["\n"]),
        ("a line", ["a line\n"]),
        ("two\nlines", ["two\nlines\n"]),
        (LONG, [LONG + "\n"]),
        (LONG + "y", [LONG[: MOST - 5] + " ...\n"]),
        ("first\n" + LONG, ["first\n", LONG + "\n"]),
        (LONG + "\nlast", [LONG + "\n", "last\n"]),
        (LONG + "y\nlast", [LONG[: MOST - 5] + " ...\n", "last\n"]),
        # Two bytes each: the last one whole that leaves room for the mark.
        ("é" * MOST, ["é" * ((MOST - 5) // 2) + " ...\n"]),
        ("\udcff", ["\\udcff\n"]),
    ],
)
def test_a_text_becomes_pieces_of_whole_lines(text: str, expected: List[str]) -> None:
    assert [piece.decode() for piece in pieces(text)] == expected
    assert all(len(piece) <= MOST for piece in pieces(text))


@pytest.mark.parametrize(
    ("places", "tries"),
    [
        # Moments in seconds, and whether a line may be written then.
        (1, [(0.0, True), (0.0, False), (0.999, False), (1.0, True), (1.5, False), (2.0, True)]),
        (2, [(0.0, True), (0.5, True), (0.9, False), (1.0, True), (1.4, False), (1.5, True)]),
        (3, [(0.0, True)] * 3 + [(0.9, False)] * 3 + [(1.0, True)] * 3 + [(1.0, False)]),
        # Another process looked at the clock a little earlier.
        (1, [(5.0, True), (4.9, False), (6.0, True)]),
        # Quiet for long: no more than ever.
        (2, [(0.0, True), (1000.0, True), (1000.0, True), (1000.0, False)]),
    ],
)
def test_no_second_has_more_lines_than_there_are_places(
    places: int, tries: List[Tuple[float, bool]]
) -> None:
    limiter = Limiter(places)
    # Not long after the machine was switched on.
    start = SECOND // 2
    for moment, allowed in tries:
        assert limiter.allow(start + round(moment * SECOND)) is allowed, moment


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
