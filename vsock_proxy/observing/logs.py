"""The log: one line an event on stderr, for people, for the journal, or for programs.

Every process writes each line whole to the shared stderr, without a buffer. So lines of different
workers never mix, and a fork duplicates none. If stderr is the journal, a line begins with its
priority (sd-daemon(3)), and the journal adds time and process.

A caller gives a text with named values, and the values: `log.info("%(host)s is gone", {"event":
"gone", "host": host})`. The text shows the values that it names. A JSON object has the values that
json_lines.py knows, even if the text does not show them. So each message is written once, and more
values for programs cost the text nothing.

Nobody waits for the log. A line that cannot be written at once is left out and counted, and the
master logs how many there were. A line that is longer than what can be written at once is cut.
"""

from __future__ import annotations

import errno
import logging
from typing import Callable, Dict, Mapping, Optional

from vsock_proxy.observing.journal import each_line_with, priority, stderr_is_journal
from vsock_proxy.observing.stderr import MOST, Stderr, pieces
from vsock_proxy.observing.untold import UNWRITTEN, Untold
from vsock_proxy.printable import printable, printable_lines, timestamp
from vsock_proxy.settings import JSON, TEXT

# How the name of a worker begins.
WORKER = "worker "
# The event of a line that other code logs.
OTHER = "other"


class _StderrHandler(logging.Handler):
    def __init__(self, stderr: Stderr, untold: Untold) -> None:
        super().__init__()
        self._stderr = stderr
        self._untold = untold

    def emit(self, record: logging.LogRecord) -> None:
        for piece in pieces(self.format(record)):
            # Counts as unwritten until it is written: a signal handler may raise in between.
            code = errno.EINTR
            try:
                code = self.attempt(piece)
            finally:
                if code:
                    self._untold.count(UNWRITTEN, piece.count(b"\n"), code)

    def attempt(self, piece: bytes) -> int:
        """Write whole lines now; the errno if that cannot be done."""
        if self._untold.is_torn:
            # For the reason that tore the line.
            return self._untold.code(UNWRITTEN) or errno.EAGAIN
        try:
            written = self._stderr.write(piece)
        except OSError as error:
            return error.errno or errno.EIO
        if written < len(piece):
            self._keep(piece[written:])
        return 0

    def _keep(self, rest: bytes) -> None:
        # Only another write says why this one ended in the middle.
        try:
            rest = rest[self._stderr.write(rest) :]
        except OSError as error:
            self._untold.because(UNWRITTEN, error.errno or errno.EIO)
        self._untold.keep_rest(rest)

    def finish_line(self) -> int:
        """Write the rest of a torn line; returns the errno if that cannot be done."""
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
        return each_line_with(_priority(record), self.body(record))


class _Json(_Text):
    """`{"time":"2026-01-31T12:00:00.000Z","level":"info",...}`"""

    def __init__(self, prefix: Callable[[logging.LogRecord], str]) -> None:
        """prefix: what comes before the object."""
        super().__init__()
        # Imported only if needed: it imports Python's json.
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
    return priority(record.levelname)


def _no_prefix(record: logging.LogRecord) -> str:
    return ""


def _formatter(log_format: str) -> _Text:
    is_journal = stderr_is_journal()
    if log_format == JSON:
        # The journal removes the priority again.
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
        level: the lowest level that is written.
        log_format: one of LOG_FORMATS.
        """
        self._text = _formatter(log_format)
        self.stderr = stderr
        self.untold = untold
        self._handler = _StderrHandler(stderr, untold)
        self._handler.setFormatter(self._text)
        self.finish_line = self._handler.finish_line
        # Python need not look up what no line shows (Optimization, in Python's Logging HOWTO).
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        logging._srcfile = None
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(level.upper())

    def rehearse(self) -> None:
        """Do everything for a line except write it, so that children share Python's caches."""
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
        """Name this process in every line from now on.

        cells: where a child counts lines that it cannot write (Block.row() of untold.py).
        """
        self._text.process = process
        if cells is not None:
            self.untold.belong_to(cells)

    def write(self, level: int, text: str, known: Dict[str, object]) -> int:
        """Write a line now, whatever its level; returns the errno if that cannot be done."""
        record = logging.LogRecord(__name__, level, "", 0, text, (known,), None)
        (piece,) = pieces(self._text.format(record))
        return self._handler.attempt(piece)
