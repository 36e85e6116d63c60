"""What /proc tells about the processes of a proxy."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Callable, Dict, List

from tests.support import processes
from tests.support.processes import title

WORKER_TITLE = "vsock-proxy: worker "


def tree(root: int) -> List[int]:
    """The process and all its descendants."""
    children: Dict[int, List[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children[int(after_name[1])].append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(children[pid])
    return found


def workers(root: int) -> List[int]:
    """Those processes of this proxy that call themselves workers."""
    return [pid for pid in tree(root) if title(pid).startswith(WORKER_TITLE)]


def pss_kib(pid: int) -> int:
    """The proportional set size: a page shared by n processes counts as one n-th of a page."""
    return _unless_gone(processes.pss_kib, pid)


def voluntary_switches(pid: int) -> int:
    """How often the process has gone to sleep, which is how often it has been woken."""
    return _unless_gone(processes.context_switches, pid)


def _unless_gone(figure: Callable[[int], int], pid: int) -> int:
    """0 where the process has ended meanwhile."""
    try:
        return figure(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
