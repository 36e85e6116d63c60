"""Lines cut to what can be written at once, as a table."""

from __future__ import annotations

from typing import List

import pytest

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
