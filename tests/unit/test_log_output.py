"""What becomes of a line that the log takes in part or not at all, and what a line looks like.

The log is a script: how many bytes each write takes, or the errno it fails with.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from typing import Iterator, List, Union

import pytest

from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.stderr import MOST
from vsock_proxy.observing.untold import LEFT_OUT, NOT_ACCEPTED, UNWRITTEN, Untold
from vsock_proxy.serving.interruption import EndNow

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

ALL = MOST
Answer = Union[int, OSError, EndNow]
LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def fails(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Scripted:
    """Stands for stderr."""

    fd = 2

    def __init__(self) -> None:
        self.answers: List[Answer] = []
        self.written = b""

    def write(self, data: bytes) -> int:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        self.written += data[:answer]
        return min(answer, len(data))


@pytest.fixture
def stderr() -> Scripted:
    return Scripted()


@pytest.fixture
def untold() -> Iterator[Untold]:
    made = Untold()
    yield made
    for fd in (made.reader, made._writer):
        os.close(fd)


@pytest.fixture
def log(stderr: Scripted, untold: Untold, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """The log of this process; afterwards that is pytest's again."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    made = Log("info", stderr, untold)  # type: ignore[arg-type]
    made.name("master")
    yield made
    root.handlers[:] = handlers
    root.setLevel(level)


# What is not written


@pytest.mark.parametrize(
    ("answers", "code", "torn"),
    [
        ([ALL], 0, False),
        ([fails(errno.EAGAIN)], errno.EAGAIN, False),
        ([fails(errno.ENOSPC)], errno.ENOSPC, False),
        ([OSError("without a number")], errno.EIO, False),
        # What is left is tried once more, since only that says why it was not taken.
        ([10, ALL], 0, False),
        ([10, 5], 0, True),
        ([10, fails(errno.EFBIG)], 0, True),
        ([10, OSError("without a number")], 0, True),
    ],
)
def test_a_line_is_written_whole_not_at_all_or_its_rest_is_kept(
    answers: List[Answer], code: int, torn: bool, log: Log, stderr: Scripted, untold: Untold
) -> None:
    stderr.answers = answers
    assert log.write(logging.WARNING, "%(text)s", {"text": "text"}) == code
    assert not stderr.answers
    assert untold.is_torn is torn
    whole = stderr.written + untold.rest
    assert re.fullmatch(rf"{LINE} warning master: text\n".encode(), whole) or (code and not whole)


@pytest.mark.parametrize(
    ("why", "code"),
    [
        (5, errno.EAGAIN),
        (fails(errno.EAGAIN), errno.EAGAIN),
        (fails(errno.EFBIG), errno.EFBIG),
        (OSError("without a number"), errno.EIO),
    ],
)
def test_behind_a_torn_line_nothing_is_written_for_the_same_reason(
    why: Answer, code: int, log: Log, stderr: Scripted
) -> None:
    stderr.answers = [10, why]
    log.write(logging.WARNING, "%(text)s", {"text": "text"})
    assert log.write(logging.WARNING, "%(text)s", {"text": "another"}) == code
    assert b"another" not in stderr.written


@pytest.mark.parametrize(
    ("answers", "codes"),
    [
        ([ALL], [0]),
        ([3, ALL], [errno.EAGAIN, 0]),
        ([fails(errno.ENOSPC), fails(errno.EAGAIN), ALL], [errno.ENOSPC, errno.EAGAIN, 0]),
        ([OSError("without a number"), ALL], [errno.EIO, 0]),
    ],
)
def test_a_torn_line_is_finished_before_another_begins(
    answers: List[Answer], codes: List[int], log: Log, stderr: Scripted, untold: Untold
) -> None:
    stderr.answers = [10, fails(errno.EAGAIN)]
    log.write(logging.WARNING, "%(text)s", {"text": "text"})
    stderr.answers = answers
    assert [log.finish_line() for _ in codes] == codes
    assert not untold.is_torn
    assert log.finish_line() == 0
    assert re.fullmatch(rf"{LINE} warning master: text\n".encode(), stderr.written)


def test_lines_that_are_not_written_are_counted_with_the_reason(
    log: Log, stderr: Scripted, untold: Untold
) -> None:
    stderr.answers = [ALL, fails(errno.ENOSPC), fails(errno.EAGAIN)]
    for _ in range(3):
        logging.getLogger("test").info("text")
    assert untold.totals()[UNWRITTEN] == 2
    assert untold.code(UNWRITTEN) == errno.EAGAIN


def test_a_line_that_a_signal_broke_off_counts_as_not_written(
    log: Log, stderr: Scripted, untold: Untold
) -> None:
    stderr.answers = [EndNow()]
    with pytest.raises(EndNow):
        logging.getLogger("test").info("text")
    assert (untold.totals()[UNWRITTEN], untold.code(UNWRITTEN)) == (1, errno.EINTR)


# What a line looks like


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("b\u00fccher", "b\u00fccher"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2Jcleared\r", r"\x1b[2Jcleared\r"),
        ("right-to-left \u202e", r"right-to-left \u202e"),
        ("no text \udcff", r"no text \udcff"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_whatever_a_text_holds_it_is_one_line(
    text: str, shown: str, log: Log, stderr: Scripted
) -> None:
    stderr.answers = [ALL]
    # Not by a logger: pytest would hear of it, and xdist cannot pass on what is no text.
    log.write(logging.INFO, "%(text)s", {"text": text})
    (line,) = stderr.written.decode().splitlines()
    assert re.fullmatch(rf"{LINE} info master: {re.escape(shown)}", line)


def test_a_level_that_was_not_asked_for_is_not_written(log: Log, stderr: Scripted) -> None:
    logging.getLogger("test").debug("text")
    assert not stderr.written


def test_an_internal_error_is_shown_with_where_it_came_from(log: Log, stderr: Scripted) -> None:
    stderr.answers = [ALL]
    try:
        raise ValueError("a bug")
    except ValueError:
        logging.getLogger("test").exception("internal error")
    first, second, *_, last = stderr.written.decode().splitlines()
    assert first.endswith(" error master: internal error")
    assert (second, last) == ("Traceback (most recent call last):", "ValueError: a bug")


@pytest.mark.parametrize("is_journal", [True, False])
def test_in_the_journal_each_line_begins_with_its_priority(
    is_journal: bool,
    stderr: Scripted,
    untold: Untold,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stat = os.fstat(2)
    # Another one is the stream of whoever has started this.
    inode = stat.st_ino if is_journal else stat.st_ino + 1
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{inode}")
    log = Log("info", stderr, untold)  # type: ignore[arg-type]
    log.name("worker 2")
    stderr.answers = [ALL, ALL, ALL]
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("test").log(level, "text")
    priorities = [line.split("worker 2: ")[0] for line in stderr.written.decode().splitlines()]
    assert (priorities == ["<6>", "<4>", "<3>"]) is is_journal


def test_a_rehearsal_writes_nothing(log: Log, stderr: Scripted) -> None:
    log.rehearse()
    stderr.answers = [ALL]
    logging.getLogger("test").info("text")
    assert stderr.written.endswith(b"text\n")


# What is counted


def test_what_all_processes_have_counted_is_added_up(untold: Untold) -> None:
    block = untold.add(2)
    for place, number in ((0, 3), (1, 4), (0, 5)):
        untold.belong_to(block.row(place))
        untold.count(LEFT_OUT, number)
    untold.count(NOT_ACCEPTED, 1, errno.EMFILE)
    assert untold.totals()[LEFT_OUT] == 12
    assert untold.totals()[NOT_ACCEPTED] == 1
    assert untold.code(NOT_ACCEPTED) == errno.EMFILE


def test_a_pipe_that_is_full_or_has_no_reader_keeps_nobody_from_counting() -> None:
    untold = Untold()
    # A pipe takes 65,536 bytes.
    for _ in range(70_000):
        untold.count(LEFT_OUT)
    os.close(untold.reader)
    untold.count(LEFT_OUT)
    assert untold.totals()[LEFT_OUT] == 70_001
    os.close(untold._writer)


def test_while_the_master_looks_it_is_not_woken(untold: Untold) -> None:
    untold.looked_at = True
    untold.count(LEFT_OUT)
    with pytest.raises(BlockingIOError):
        os.read(untold.reader, 1)
    untold.looked_at = False
    untold.count(LEFT_OUT)
    assert os.read(untold.reader, 2) == b"\0"
