"""What /proc tells about processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional


def title(pid: int) -> str:
    """The title that `ps` shows, empty for a process that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> List[int]:
    """The pids of a process's children, zombies included."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def state(pid: int) -> Optional[str]:
    """The one-letter state of a process (proc(5)), None once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process still runs: a zombie does not."""
    return state(pid) not in (None, "Z")


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def pss_kib(pid: int) -> int:
    """The proportional set size: a process's memory, shared pages counted in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError(f"no Pss of {pid}")


def context_switches(pid: int) -> int:
    """How often a process gave up the processor of itself, which is once a wait."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise AssertionError(f"no context switches of {pid}")


def anonymous_kib(pid: int) -> int:
    """The proportional size of the memory that is a process's own.

    Unlike that of the files it maps, it does not depend on who else runs Python on this machine.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1])
    raise AssertionError(f"no Pss_Anon of {pid}")


def file_names(pid: int) -> List[str]:
    """What the descriptors of a process are open on, as /proc names it."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:
            # Closed since.
            continue
    return found
