"""The last words of a program that ends before or instead of serving, while it has no log."""

from __future__ import annotations

import time

from vsock_proxy.observing.stderr import Stderr
from vsock_proxy.printable import printable, printable_lines, timestamp


class Complaints:
    """Says on stderr why the program ends."""

    def __init__(self, stderr: Stderr, in_json: bool) -> None:
        self.stderr = stderr
        self._in_json = in_json

    def fail(self, message: str, exit_code: int, traceback: str = "") -> int:
        """Say what is wrong; returns the exit code. traceback: if it is the program's fault."""
        if self._in_json:
            self.stderr.say(_in_json(message, exit_code, traceback))
            return exit_code
        if traceback:
            self.stderr.say(printable_lines(traceback))
        # An argument may hold bytes that are not text (PEP 383), or control characters.
        self.stderr.say(f"vsock-proxy: {printable(message)}")
        return exit_code


def _in_json(message: str, exit_code: int, traceback: str) -> str:
    # Imported late: only this needs Python's json.
    from vsock_proxy.observing.json_lines import json_line

    head = {
        "time": timestamp(time.time()),
        "level": "error",
        "event": "internal_error" if traceback else "start_failed",
        "process": "master",
    }
    return json_line(head, {"exit_code": exit_code}, message, traceback)
