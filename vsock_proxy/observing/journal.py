"""systemd's journal: whether stderr leads there, and the priority that it takes from a line.

The journal removes the priority from the line (sd-daemon(3)). Without one a line counts as `info`,
and `journalctl -p err` does not show it.
"""

from __future__ import annotations

import os

from vsock_proxy.observing.stderr import STDERR

# By the names that Python's logging has for its levels.
PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def priority(level: str) -> str:
    """What a line of this level begins with: `<3>`."""
    return f"<{PRIORITIES[level]}>"


def each_line_with(prefix: str, text: str) -> str:
    return prefix + text.replace("\n", "\n" + prefix)


def stderr_is_journal() -> bool:
    """Whether stderr is what $JOURNAL_STREAM names (systemd.exec(5))."""
    stream = os.environ.get("JOURNAL_STREAM")
    if not stream:
        return False
    try:
        stat = os.fstat(STDERR)
    except OSError:
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}"
