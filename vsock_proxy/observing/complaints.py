"""The last words of a program that ends before or instead of serving, while it has no log."""

from __future__ import annotations

import time

from vsock_proxy.observing.journal import each_line_with, priority, stderr_is_journal
from vsock_proxy.observing.stderr import MOST, Stderr
from vsock_proxy.printable import printable, printable_lines, timestamp


class Complaints:
    """Says on stderr why the program ends."""

    def __init__(self, stderr: Stderr, in_json: bool) -> None:
        self.stderr = stderr
        self._in_json = in_json
        self._prefix = priority("ERROR") if stderr_is_journal() else ""

    def fail(self, message: str, exit_code: int, traceback: str = "") -> int:
        """Say what is wrong; returns the exit code. traceback: if it is the program's fault."""
        if self._in_json:
            self._write(_in_json(message, exit_code, traceback, MOST - len(self._prefix) - 1))
            return exit_code
        if traceback:
            self._write(printable_lines(traceback))
        # An argument may hold bytes that are not text (PEP 383), or control characters.
        self._write(f"vsock-proxy: {printable(message)}")
        return exit_code

    def _write(self, text: str) -> None:
        self.stderr.say(each_line_with(self._prefix, text))


def _in_json(message: str, exit_code: int, traceback: str, most: int) -> str:
    # Imported late: only this needs Python's json.
    from vsock_proxy.observing.json_lines import json_line

    head = {
        "time": timestamp(time.time()),
        "level": "error",
        "event": "internal_error" if traceback else "start_failed",
        "process": "master",
    }
    return json_line(head, {"exit_code": exit_code}, message, traceback, most)
