"""Numbers in messages, for people.

Not for lines that scripts cut into fields: the line of a connection, the totals and the status keep
one form, `1 bytes up`.
"""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """`1 worker`, `4 workers`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
