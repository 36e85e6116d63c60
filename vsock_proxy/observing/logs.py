"""The log: one line an event on stderr, for people, for the journal, or for programs.

Every process writes each line at once to the shared stderr, unbuffered, so that lines of different
workers never mix and a fork duplicates none. Where stderr is the journal, a line begins with its
priority (sd-daemon(3)) and leaves time and process to the journal.

Who logs gives a text whose values have names, and these values: `log.info("%(host)s is gone",
{"event": "gone", "host": host})`. The text takes those that it names. A JSON object has those that
json_lines.py knows, also where the text says them in other words or not at all. So no message is
written twice, and to know more than the text says costs it nothing.

Nobody waits for the log: a line that cannot be written at once is left out and counted, and the
master says how many there were. A line that is longer than what can be written at once is cut.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Callable, Dict, Mapping, Optional

from vsock_proxy.observing.stderr import MOST, STDERR, Stderr, pieces
from vsock_proxy.observing.untold import UNWRITTEN, Untold
from vsock_proxy.printable import printable, printable_lines, timestamp
from vsock_proxy.settings import JSON, TEXT

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
# What a worker is called begins so.
WORKER = "worker "
# The event of a line that is not this program's.
OTHER = "other"


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
        return f"{timestamp(record.created)} {record.levelname.lower()} {self.body(record)}"

    def body(self, record: logging.LogRecord) -> str:
        text = f"{self.process}: {printable(record.getMessage())}"
        if record.exc_info:
            text += "\n" + printable_lines(self.formatException(record.exc_info))
        return text


class _Journal(_Text):
    """`<6>worker 2: ...`"""

    def format(self, record: logging.LogRecord) -> str:
        prefix = _priority(record)
        return prefix + self.body(record).replace("\n", "\n" + prefix)


class _Json(_Text):
    """`{"time":"2026-01-31T12:00:00.000Z","level":"info",...}`"""

    def __init__(self, prefix: Callable[[logging.LogRecord], str]) -> None:
        """prefix: what comes before the object."""
        super().__init__()
        # Imported where it is asked for: it needs Python's json.
        from vsock_proxy.observing.json_lines import json_line

        self._line = json_line
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        known: Mapping[str, object] = record.args if isinstance(record.args, dict) else {}
        head = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "event": str(known.get("event", OTHER)),
            "process": self.process,
        }
        if self.process.startswith(WORKER):
            head["worker"] = self.process[len(WORKER) :]
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        prefix = self._prefix(record)
        return prefix + self._line(head, known, record.getMessage(), trace, MOST - len(prefix) - 1)


def _priority(record: logging.LogRecord) -> str:
    return f"<{PRIORITIES[record.levelname]}>"


def _no_prefix(record: logging.LogRecord) -> str:
    return ""


def _formatter(log_format: str) -> _Text:
    is_journal = _stderr_is_journal()
    if log_format == JSON:
        # The journal takes the priority off again.
        return _Json(_priority if is_journal else _no_prefix)
    return _Journal() if is_journal else _Text()


class _FormatOnly(logging.Handler):
    """Writes nothing."""

    def __init__(self, text: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(text)

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


class Log:
    """Where all lines of this process go. Made once, by the master; a child takes another name."""

    def __init__(self, level: str, stderr: Stderr, untold: Untold, log_format: str = TEXT) -> None:
        """
        level: the lowest that is written.
        log_format: one of LOG_FORMATS.
        """
        self._text = _formatter(log_format)
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
        root.critical(
            "#%(connection)s %(peer)s: %(bytes_up)d, %(seconds).3f, %(reason)s",
            {
                "event": "rehearsal",
                "service": "1",
                "connection": "1-1",
                "peer": "1",
                "bytes_up": 1,
                "seconds": 1.0,
                "reason": "rehearsed",
                "errno": errno.EAGAIN,
            },
        )
        root.handlers[:] = kept

    def name(self, process: str, cells: Optional[memoryview] = None) -> None:
        """Say in every line from now on that it is of this process.

        cells: where a child counts what it cannot write (Block.row() of untold.py).
        """
        self._text.process = process
        if cells is not None:
            self.untold.belong_to(cells)

    def write(self, level: int, text: str, known: Dict[str, object]) -> int:
        """Write a line now, whatever the lowest level is; the errno if that cannot be done."""
        record = logging.LogRecord(__name__, level, "", 0, text, (known,), None)
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
