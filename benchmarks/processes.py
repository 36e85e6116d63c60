"""What /proc tells about the processes of a proxy."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Dict, List

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
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def voluntary_switches(pid: int) -> int:
    """How often the process has gone to sleep, which is how often it has been woken."""
    return _field(Path(f"/proc/{pid}/status"), "voluntary_ctxt_switches")


def title(pid: int) -> str:
    """What `ps` shows of it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _field(path: Path, name: str) -> int:
    """A numeric field of a file of lines `name: value`; 0 when its process has ended meanwhile."""
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
