"""The log: one line an event on stderr, for people or for the journal.

Every process writes each line with one write(2) to the shared stderr, unbuffered, so that lines
of different workers never mix and a fork duplicates none. Where stderr is the journal, a line
begins with its priority (sd-daemon(3)) and leaves time and process to the journal.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Optional

STDERR = 2
PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record) + "\n"
        try:
            os.write(STDERR, line.encode("utf-8", "backslashreplace"))
        except OSError:
            # A log that nobody takes any more must not end a connection.
            pass


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


class Log:
    """Where all lines of this process go. Made once, by the master; a child takes another name."""

    def __init__(self, level: str) -> None:
        """level: the lowest that is written."""
        self._text = _Journal() if _stderr_is_journal() else _Text()
        handler = _StderrHandler()
        handler.setFormatter(self._text)
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(level.upper())

    def name(self, process: str) -> None:
        """Say in every line from now on that it is of this process."""
        self._text.process = process


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
