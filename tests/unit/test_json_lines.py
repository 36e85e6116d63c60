"""Whatever is told of an event, it is one valid line that can be written at once."""

from __future__ import annotations

import json
from typing import Dict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsock_proxy.observing.json_lines import KEYS, json_line
from vsock_proxy.observing.stderr import MOST, pieces

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

HEAD = {
    "time": "2026-01-31T12:00:00.000Z",
    "level": "info",
    "event": "ended",
    "process": "master",
}


def line_of(known: Dict[str, object], message: str = "text", traceback: str = "") -> str:
    """A line, which must be written whole and at once."""
    line = json_line(HEAD, known, message, traceback)
    assert "\n" not in line
    (piece,) = pieces(line)
    assert piece.decode("utf-8") == line + "\n"
    return line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("b\u00fccher \U0001f600", "b\u00fccher \U0001f600"),
        ('a "quoted" \\ word', 'a "quoted" \\ word'),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2J\r\0", r"\x1b[2J\r\x00"),
        ("\u2028\u202e", r"\u2028\u202e"),
        ("no text \udcff \ud800", r"no text \udcff \ud800"),
    ],
)
def test_a_text_is_shown_as_in_a_line_of_text_and_comes_back_whole(text: str, shown: str) -> None:
    line = json.loads(line_of({"peer": text}, text))
    assert (line["peer"], line["message"]) == (shown, shown)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"bytes_up": 0, "count": 2**64}, {"bytes_up": 0, "count": 2**64}),
        ({"seconds": 1 / 3}, {"seconds": 0.333333}),
        ({"errno": 104}, {"errno": "ECONNRESET"}),
        ({"errno": 0}, {}),
        ({"errno": None, "service": None}, {}),
        ({"errno": 99_999}, {}),
        ({"reason": ValueError("what")}, {"reason": "what"}),
        ({"of the text alone": 1}, {}),
    ],
)
def test_what_is_known_has_its_key_and_what_is_not_has_none(
    known: Dict[str, object], expected: Dict[str, object]
) -> None:
    assert json.loads(line_of(known)) == {**HEAD, **expected, "message": "text"}


@pytest.mark.parametrize("character", ["x", '"', "\\", "\u00e9", "\U0001f600", "\n", "\udcff"])
@pytest.mark.parametrize("length", [1000, 4000, MOST, 100_000])
def test_a_text_that_is_too_long_is_cut_and_not_the_line(character: str, length: int) -> None:
    text = character * length
    line = json.loads(line_of({"peer": "16:1024", "reason": text}, f"end: {text}"))
    assert (line["peer"], line["event"]) == ("16:1024", "ended")
    assert line["message"].startswith("end: ")
    if length == 100_000:
        assert line["message"].endswith(" ...")
        # Not more is cut than has to be, but for an escape that does not fit.
        assert len(json_line(HEAD, {}, text).encode()) > MOST - 20


def test_a_line_that_just_fits_is_not_cut() -> None:
    room = MOST - 1 - len(line_of({}, ""))
    assert json.loads(line_of({}, "x" * room))["message"] == "x" * room
    cut = json.loads(line_of({}, "x" * (room + 1)))["message"]
    assert cut == "x" * (room - 4) + " ..."


def test_a_traceback_keeps_its_lines_and_a_long_one_keeps_its_end() -> None:
    trace = "Traceback:\n" + '  File "\x1b"\n' * 1000 + "ValueError: a bug"
    assert json.loads(line_of({}, traceback="one\ntwo"))["traceback"] == "one\ntwo"
    shown = json.loads(line_of({}, traceback=trace))["traceback"]
    assert shown.startswith(" ...")
    assert shown.endswith('  File "\\x1b"\nValueError: a bug')


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(KEYS), st.none() | st.integers() | st.floats(0, 1e9) | st.text()
    ),
    st.text() | st.text(st.sampled_from('"\\\udcff\n\u00e9')).map(lambda text: text * 2000),
    st.text(),
)
def test_whatever_is_told_it_is_a_line(
    known: Dict[str, object], message: str, traceback: str
) -> None:
    line = json.loads(line_of(known, message, traceback))
    assert set(HEAD) | {"message"} <= set(line)
