"""The parts of every line in every format: text that is safe for a terminal, and a time."""

from __future__ import annotations

import time


def printable(text: str) -> str:
    """The text on one line, whatever it contains.

    Control characters, characters that change the direction of writing, and bytes that are not text
    (PEP 383) are shown by their numbers.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same, but the ends of lines stay."""
    return "\n".join(map(printable, text.split("\n")))


def timestamp(seconds: float) -> str:
    """A time.time() as `2026-01-31T12:00:00.000Z`."""
    whole = int(seconds)
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{date}.{int((seconds - whole) * 1000):03d}Z"
