"""A line of the log as one JSON object, for programs; docs/log.schema.json says what it may hold.

This module and Python's json are imported only if they are needed. A line is always valid JSON and
valid UTF-8. It is never longer than what can be written at once: the longest texts in it are cut,
not the line itself.
"""

from __future__ import annotations

import errno
import json
from typing import Dict, Mapping, Sequence

from vsock_proxy.observing.stderr import CUT, MOST
from vsock_proxy.printable import printable, printable_lines

# The values of an event that a line may hold, in this order. All other values are only for the
# text.
KEYS = (
    "check",
    "service",
    "worker",
    "pid",
    "state",
    "connection",
    "peer",
    "upstream",
    "bytes_up",
    "bytes_down",
    "seconds",
    "served",
    "failed",
    "count",
    "reason",
    "errno",
    "exit_code",
)
# Marks a text that was cut.
MARK = CUT.decode()
# Digits after the point.
PRECISION = 6

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_line(
    head: Mapping[str, str],
    known: Mapping[str, object],
    message: str,
    traceback: str = "",
    most: int = MOST - 1,
) -> str:
    """
    head: what every line has.
    known: the values of the event.
    message: the text that a line of text would have.
    most: the bytes that the line may have.
    """
    line: Dict[str, object] = dict(head)
    for key in KEYS:
        value = known.get(key)
        if key == "errno":
            # Its name is the same on every machine.
            value = errno.errorcode.get(value) if isinstance(value, int) else None
        if value is not None:
            line[key] = _plain(value)
    line["message"] = printable(message)
    if traceback:
        line["traceback"] = printable_lines(traceback)
    text = _encode(line)
    excess = len(text.encode()) - most
    if excess > 0:
        _cut(line, excess)
        text = _encode(line)
    return text


def _plain(value: object) -> object:
    if isinstance(value, int):
        return value
    return round(value, PRECISION) if isinstance(value, float) else printable(str(value))


def _cut(line: Dict[str, object], excess: int) -> None:
    """Shorten the longest texts of a line to one size, to save these bytes or a few more."""
    sizes = {key: _size(value) for key, value in line.items() if isinstance(value, str)}
    most = _largest(sorted(sizes.values()), excess)
    for key in [key for key, size in sizes.items() if size > most]:
        text = str(line[key])
        if key == "traceback":
            # Its last line says what happened.
            line[key] = MARK + _beginning(text[::-1], most - len(MARK))[::-1]
        else:
            line[key] = _beginning(text, most - len(MARK)) + MARK


def _largest(sizes: Sequence[int], excess: int) -> int:
    """The most that a text may have, so that all together lose the excess. sizes: sorted."""
    room = sum(sizes) - excess
    for place, size in enumerate(sizes):
        share = room // (len(sizes) - place)
        if size > share:
            return share
        room -= size
    raise AssertionError("there is room for all")


def _beginning(text: str, size: int) -> str:
    """The longest beginning of a text that has at most that size in JSON."""
    for place, character in enumerate(text):
        size -= _size(character)
        if size < 0:
            return text[:place]
    return text


def _size(text: str) -> int:
    """The bytes of a text in JSON, without the quotes."""
    return len(_encode(text).encode()) - 2
