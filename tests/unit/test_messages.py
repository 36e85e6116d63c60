"""The page of messages and the program say the same: neither has a message that the other lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.messages import (
    VALUE,
    Piece,
    entries_of,
    pieces_of,
    texts_of,
    unsaid,
    words_of_the_system,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = ROOT / "vsock_proxy"


def test_each_message_of_the_program_is_on_the_page() -> None:
    listed = [message for entry in entries_of(PAGE.read_text()) for message in entry.messages]
    missing = [
        f"{piece.place}: {piece.shown}"
        for piece in pieces_of(SOURCES)
        if piece.says_something and not any(any(piece.found_in(message)) for message in listed)
    ]
    assert not missing, "not in docs/troubleshooting.md:\n" + "\n".join(sorted(missing))


def test_the_page_has_no_message_that_the_program_does_not_give() -> None:
    pieces, system = pieces_of(SOURCES), words_of_the_system()
    wrong = [
        f"{PAGE.name}:{entry.line}: {message}: nothing gives {', '.join(sorted(words))}"
        for entry in entries_of(PAGE.read_text())
        for message in entry.messages
        for words in [unsaid(message, pieces, system)]
        if words
    ]
    assert not wrong, "\n".join(wrong)


def test_each_message_has_what_happened_and_what_to_do() -> None:
    bare = [
        f"{PAGE.name}:{entry.line}"
        for entry in entries_of(PAGE.read_text())
        if not entry.messages or len(entry.cells) != 3 or not all(entry.cells)
    ]
    assert not bare


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise UsageError(f'no {name} here')", f"no {VALUE} here"),
        ("raise UsageError('empty')", "empty"),
        ("log.info('%(host)s is gone', {'event': 'gone'})", f"{VALUE} is gone"),
        ("REASON = 'not there'", "not there"),
        ("MOST = 1 << 4\nreason = f'more than {MOST} of them'", "more than 16 of them"),
        ("PAUSE = 2.0\nreason = f'only after {PAUSE:g} s'", "only after 2 s"),
        ("reason = f'{host}: {missing or \"not there\"}'", "not there"),
    ],
)
def test_a_text_is_found_wherever_it_stands(source: str, said: str) -> None:
    pieces = [Piece("", text, given) for _, text, given in texts_of(source)]
    assert said in [piece.text for piece in pieces if piece.says_something]


@pytest.mark.parametrize(
    "source", ['"What it does."', "raise AssertionError('not reached')", "KEY = 'exit_code'"]
)
def test_what_nobody_is_to_read_is_no_message(source: str) -> None:
    assert not any(Piece("", text, given).says_something for _, text, given in texts_of(source))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("cannot open FILE: Permission denied", set()),
        ("cannot open FILE: ...", set()),
        ("cannot close FILE: Permission denied", {"cannot", "close"}),
        ("cannot open FILE: Permission denied; try again", {"try", "again"}),
    ],
)
def test_a_word_of_the_page_that_nothing_gives_is_found(message: str, words: set[str]) -> None:
    pieces = [Piece("", f"cannot open {VALUE}: {VALUE}")]
    assert unsaid(message, pieces, words_of_the_system()) == words
