"""The verdicts of --check, a line each: text, in colour on a terminal, or JSON.

A fault would end serving, and has its exit code. The verdicts come in the order of the steps of
serving, so the check ends with the exit code of the first fault. What other code logs meanwhile
becomes a warning. So the check says once each thing that serving would say.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Callable, Mapping, Optional, TypeVar

from vsock_proxy.errors import ProxyError
from vsock_proxy.printable import printable, printable_lines, timestamp
from vsock_proxy.settings import JSON

PROCESS = "check"
CHECKED = "checked"
OK, WARNING, FAULT = logging.INFO, logging.WARNING, logging.ERROR
WORDS = {OK: "ok", WARNING: "warning", FAULT: "fault"}
LONGEST_WORD = max(map(len, WORDS.values()))
# Colours of ECMA-48: green, yellow, red.
COLOURS = {OK: 32, WARNING: 33, FAULT: 31}

Write = Callable[[str], None]
T = TypeVar("T")


class Verdicts(logging.Handler):
    """Writes the verdicts, and counts them."""

    def __init__(self, write: Write, log_format: str, lowest: str, is_coloured: bool) -> None:
        """
        write: writes a line, and adds its end. What it raises ends the check.
        log_format: one of LOG_FORMATS.
        lowest: the lowest level that is written.
        """
        super().__init__()
        self.exit_code = os.EX_OK
        self.warnings = 0
        # Whether a line has to name its service.
        self.are_several = False
        self._write = write
        self._in_json = log_format == JSON
        self._lowest = logging.getLevelName(lowest.upper())
        self._is_coloured = is_coloured
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(OK)

    def tell(self, level: int, check: str, text: str, service: str = "", **known: object) -> None:
        """Write one verdict.

        level: OK, WARNING or FAULT; a fault has its exit_code.
        check: what was checked, in a word that stays the same.
        service: the name of the service that it is about.
        known: further values for a JSON object (json_lines.py).
        """
        named = f"{service}: {text}" if service and self.are_several else text
        self._verdict(level, check, named, service, known)

    def refuse(self, check: str, error: ProxyError, service: str = "") -> None:
        """Write an error that would end the start. The error names its service of the file."""
        self._verdict(FAULT, check, str(error), service, {"exit_code": error.exit_code})

    def unless_refused(self, check: str, step: Callable[[], T]) -> Optional[T]:
        """What a step of serving returns; None if it would end the start."""
        try:
            return step()
        except ProxyError as error:
            self.refuse(check, error)
            return None

    def passes(self, check: str, step: Callable[[], object]) -> bool:
        """Whether a step of serving does not end the start."""
        return self.unless_refused(check, lambda: (step(),)) is not None

    def _verdict(
        self, level: int, check: str, text: str, service: str, known: Mapping[str, object]
    ) -> None:
        if level == FAULT and self.exit_code == os.EX_OK:
            self.exit_code = int(str(known["exit_code"]))
        about = {"service": service} if service else {}
        self._tell(level, text, {"event": CHECKED, "check": check, **about, **known})

    def emit(self, record: logging.LogRecord) -> None:
        """Write what the log would say, as a warning."""
        known = record.args if isinstance(record.args, dict) else {}
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        self._tell(WARNING, record.getMessage(), known, trace)

    def _tell(self, level: int, text: str, known: Mapping[str, object], trace: str = "") -> None:
        self.warnings += level == WARNING
        if level < self._lowest:
            return
        if self._in_json:
            # Imported only if needed: it imports Python's json.
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
    """Whether to colour lines: on a terminal that can, unless NO_COLOR forbids it.

    NO_COLOR forbids it if it is set and not empty (no-color.org).
    """
    return (
        not environment.get("NO_COLOR")
        and environment.get("TERM", "dumb") != "dumb"
        and os.isatty(fd)
    )
