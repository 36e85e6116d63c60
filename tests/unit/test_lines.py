"""Lines cut to what can be written at once, as a table."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Iterator, List

import pytest

from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.stderr import MOST, Stderr, pieces
from vsock_proxy.observing.untold import UNWRITTEN, Untold

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

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


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The logger of all, which is afterwards as it was."""
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_lines_of_many_threads_are_whole_and_each_is_written_or_counted(
    root: logging.Logger,
) -> None:
    ours, theirs = socket.socketpair()
    stderr, untold = Stderr(), Untold()
    stderr.send_to(ours)
    Log("info", stderr, untold).name("resolver")
    many, lines = 8, 2000

    def write(number: int) -> None:
        for line in range(lines):
            root.warning("%d %d end", number, line)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours.close()
    with theirs, theirs.makefile() as stream:
        written = list(stream)
    assert all(line.endswith(" end\n") for line in written)
    # More than there was room for.
    assert untold.totals()[UNWRITTEN]
    assert len(written) + untold.totals()[UNWRITTEN] == many * lines
