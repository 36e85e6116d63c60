"""What --check has found, a line each: for people, in colour on a terminal, or for programs.

A fault is what serving would end with; it has that exit code. They are told in the order in which
serving would meet them, so the first one counts. What other code logs meanwhile is a warning: so
each thing that serving would say is said, and once.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from typing import Callable, Mapping

from vsock_proxy.observing.printable import printable, printable_lines, timestamp
from vsock_proxy.settings import JSON

PROCESS = "check"
CHECKED = "checked"
OK, WARNING, FAULT = logging.INFO, logging.WARNING, logging.ERROR
WORDS = {OK: "ok", WARNING: "warning", FAULT: "fault"}
LONGEST_WORD = max(map(len, WORDS.values()))
# Of ECMA-48: green, yellow, red.
COLOURS = {OK: 32, WARNING: 33, FAULT: 31}

Write = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """
    level: OK, WARNING or FAULT.
    check: what was looked at, in a word that stays the same.
    known: what a JSON object has besides (json_lines.py).
    """

    level: int
    check: str
    text: str
    known: Mapping[str, object] = field(default_factory=dict)


class Verdicts(logging.Handler):
    """Where they are told."""

    def __init__(self, write: Write, log_format: str, lowest: str, is_coloured: bool) -> None:
        """
        write: takes a line without its end; raises what nobody here can mend.
        log_format: one of LOG_FORMATS.
        lowest: the level of the log, below which nothing is told.
        """
        super().__init__()
        self.exit_code = os.EX_OK
        self.warnings = 0
        self._write = write
        self._in_json = log_format == JSON
        self._lowest = logging.getLevelName(lowest.upper())
        self._is_coloured = is_coloured
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(OK)

    def say(self, verdict: Verdict) -> None:
        """Tell one."""
        if verdict.level == FAULT and self.exit_code == os.EX_OK:
            self.exit_code = int(str(verdict.known["exit_code"]))
        known = {"event": CHECKED, "check": verdict.check, **verdict.known}
        self._tell(verdict.level, verdict.text, known)

    def emit(self, record: logging.LogRecord) -> None:
        """What the log would have said."""
        known = record.args if isinstance(record.args, dict) else {}
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        self._tell(WARNING, record.getMessage(), known, trace)

    def _tell(self, level: int, text: str, known: Mapping[str, object], trace: str = "") -> None:
        self.warnings += level == WARNING
        if level < self._lowest:
            return
        if self._in_json:
            # Imported where it is asked for: it needs Python's json.
            from vsock_proxy.observing.json_lines import json_line

            head = {
                "time": timestamp(time.time()),
                "level": logging.getLevelName(level).lower(),
                "event": str(known.get("event", "other")),
                "process": PROCESS,
            }
            self._write(json_line(head, known, text, trace))
            return
        line = f"{self._word(level)} {printable(text)}"
        self._write(f"{line}\n{printable_lines(trace)}" if trace else line)

    def _word(self, level: int) -> str:
        word = WORDS[level]
        blanks = " " * (LONGEST_WORD - len(word))
        coloured = f"\x1b[{COLOURS[level]}m{word}\x1b[0m" if self._is_coloured else word
        return coloured + blanks


def is_colour_wanted(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether lines there are to be coloured: a terminal that can, and nobody objects.

    NO_COLOR objects if it is set and not empty (no-color.org).
    """
    return (
        not environment.get("NO_COLOR")
        and environment.get("TERM", "dumb") != "dumb"
        and os.isatty(fd)
    )
