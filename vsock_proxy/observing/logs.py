"""The log: one line an event on stderr, for people or for the journal.

Every process writes each line at once to the shared stderr, unbuffered, so that lines of different
workers never mix and a fork duplicates none. Where stderr is the journal, a line begins with its
priority (sd-daemon(3)) and leaves time and process to the journal.

Nobody waits for the log: a line that cannot be written at once is left out and counted, and the
master says how many there were. A line that is longer than what can be written at once is cut.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import Optional

from vsock_proxy.observing.stderr import STDERR, Stderr, pieces
from vsock_proxy.observing.untold import UNWRITTEN, Untold

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _StderrHandler(logging.Handler):
    def __init__(self, stderr: Stderr, untold: Untold) -> None:
        super().__init__()
        self._stderr = stderr
        self._untold = untold

    def emit(self, record: logging.LogRecord) -> None:
        for piece in pieces(self.format(record)):
            # Not known to be written until that is known: a signal may raise in the middle of it.
            code = errno.EINTR
            try:
                code = self.attempt(piece)
            finally:
                if code:
                    self._untold.count(UNWRITTEN, piece.count(b"\n"), code)

    def attempt(self, piece: bytes) -> int:
        """Write whole lines now; the errno if that cannot be done."""
        if self._untold.is_torn:
            # For the same reason as the one that tore it.
            return self._untold.code(UNWRITTEN) or errno.EAGAIN
        try:
            written = self._stderr.write(piece)
        except OSError as error:
            return error.errno or errno.EIO
        if written < len(piece):
            self._keep(piece[written:])
        return 0

    def _keep(self, rest: bytes) -> None:
        # Why a write ended in the middle, only the next one says.
        try:
            rest = rest[self._stderr.write(rest) :]
        except OSError as error:
            self._untold.because(UNWRITTEN, error.errno or errno.EIO)
        self._untold.keep_rest(rest)

    def finish_line(self) -> int:
        """Write what is left of a line that was begun; the errno if that cannot be done."""
        rest = self._untold.rest
        if not rest:
            return 0
        try:
            written = self._stderr.write(rest)
        except OSError as error:
            return error.errno or errno.EIO
        self._untold.keep_rest(rest[written:])
        return errno.EAGAIN if written < len(rest) else 0


class _Text(logging.Formatter):
    """`2026-01-31T12:00:00.000Z info worker 2: ...`"""

    process = ""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{seconds}.{int(record.msecs):03d}Z {record.levelname.lower()} {self.body(record)}"

    def body(self, record: logging.LogRecord) -> str:
        text = f"{self.process}: {_printable(record.getMessage())}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _Journal(_Text):
    """`<6>worker 2: ...`"""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{PRIORITIES[record.levelname]}>"
        return prefix + self.body(record).replace("\n", "\n" + prefix)


class _FormatOnly(logging.Handler):
    """Writes nothing."""

    def __init__(self, text: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(text)

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


class Log:
    """Where all lines of this process go. Made once, by the master; a child takes another name."""

    def __init__(self, level: str, stderr: Stderr, untold: Untold) -> None:
        """level: the lowest that is written."""
        self._text = _Journal() if _stderr_is_journal() else _Text()
        self.stderr = stderr
        self.untold = untold
        self._handler = _StderrHandler(stderr, untold)
        self._handler.setFormatter(self._text)
        self.finish_line = self._handler.finish_line
        # What no line says is not looked up (Optimization, in Python's Logging HOWTO).
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        logging._srcfile = None
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(level.upper())

    def rehearse(self) -> None:
        """Do all for a line but write it, so that what the interpreter caches is shared."""
        root = logging.getLogger()
        kept, root.handlers[:] = root.handlers[:], [_FormatOnly(self._text)]
        root.critical("%s: %d, %.3f", "rehearsal", 1, 1.0)
        root.handlers[:] = kept

    def name(self, process: str, cells: Optional[memoryview] = None) -> None:
        """Say in every line from now on that it is of this process.

        cells: where a child counts what it cannot write (Block.row() of untold.py).
        """
        self._text.process = process
        if cells is not None:
            self.untold.belong_to(cells)

    def write(self, level: int, text: str) -> int:
        """Write a line now, whatever the lowest level is; the errno if that cannot be done."""
        record = logging.LogRecord(__name__, level, "", 0, text, None, None)
        (piece,) = pieces(self._text.format(record))
        return self._handler.attempt(piece)


def _stderr_is_journal() -> bool:
    """Whether stderr is what $JOURNAL_STREAM names (systemd.exec(5))."""
    stream: Optional[str] = os.environ.get("JOURNAL_STREAM")
    if not stream:
        return False
    try:
        stat = os.fstat(STDERR)
    except OSError:
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}"


def _printable(text: str) -> str:
    """The text on one line, whatever it holds."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
