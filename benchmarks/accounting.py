"""CPU time of a whole process tree, children that nobody waited for included.

The obvious sums can miss what matters here. /proc/PID/stat and wait4() credit a parent with a
child's time only if the parent reaps it, so that what forks for each connection looks cheap when
its children end otherwise, and perf stops counting a process before it has been torn down. A
control group of its own for each proxy counts in the kernel's scheduler whatever ran in it, to
the microsecond, whoever has ended since. Any version 2 group has that count (cpu.stat), with no
controller enabled, even where the system manages its services by version 1.

`check()` measures a known burner, so that the method is shown to be right on the machine at hand.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, NoReturn, Optional

BURNERS = 4
BURN_SECONDS = (0.05, 0.25)


@dataclass(frozen=True)
class Group:
    """A control group; `path` is None where none can be made, and then nothing is counted."""

    path: Optional[Path]

    def enter(self) -> None:
        """Move the calling process in; for use in a child before it executes its program."""
        if self.path is not None:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def cpu_seconds(self) -> Optional[float]:
        if self.path is None:
            return None
        for line in (self.path / "cpu.stat").read_text().splitlines():
            name, value = line.split()
            if name == "usage_usec":
                return int(value) / 1e6
        return None

    def pids(self) -> List[int]:
        if self.path is None:
            return []
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]


class Accounting:
    """Makes the groups. Without the right to, all of them count nothing and `why_not` says why."""

    def __init__(self, root: Optional[Path], why_not: str) -> None:
        self.why_not = why_not
        self._root = root
        self._made = 0

    @contextmanager
    def group(self) -> Iterator[Group]:
        if self._root is None:
            yield Group(None)
            return
        self._made += 1
        path = self._root / f"vsock-proxy-benchmark-{os.getpid()}-{self._made}"
        path.mkdir()
        group = Group(path)
        try:
            yield group
        finally:
            _end_all(group)
            path.rmdir()


@contextmanager
def accounting() -> Iterator[Accounting]:
    """Find the place where groups can be made, or mount one."""
    for root in _mounted():
        if os.access(root / "cgroup.procs", os.W_OK) and os.access(root, os.W_OK):
            yield Accounting(root, "")
            return
    with tempfile.TemporaryDirectory(prefix="benchmark-cgroup-") as place:
        mounting = subprocess.run(
            ["mount", "-t", "cgroup2", "none", place], capture_output=True, text=True, check=False
        )
        if mounting.returncode != 0:
            yield Accounting(
                None, "CPU time is not measured: no control group can be made here (run as root)"
            )
            return
        try:
            yield Accounting(Path(place), "")
        finally:
            subprocess.run(["umount", place], check=False)


def check(accounts: Accounting) -> Optional[float]:
    """Measured over true CPU time of children that nobody reaps; 1.0 is right.

    Forking and ending take time too, so it measures what a long burn takes more than a short one.
    """
    short, long = (_measure_burners(accounts, seconds) for seconds in BURN_SECONDS)
    if short is None or long is None:
        return None
    return (long - short) / (BURNERS * (BURN_SECONDS[1] - BURN_SECONDS[0]))


def _measure_burners(accounts: Accounting, seconds: float) -> Optional[float]:
    with accounts.group() as group:
        pid = os.fork()
        if pid == 0:
            _burn_in_children(group, seconds)
        _, status = os.waitpid(pid, 0)
        return group.cpu_seconds() if status == 0 else None


def _burn_in_children(group: Group, seconds: float) -> NoReturn:
    group.enter()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(BURNERS):
        if os.fork() == 0:
            while time.process_time() < seconds:
                pass
            os._exit(0)
    try:
        os.wait()  # returns, with an error, when all children have ended
    except ChildProcessError:
        os._exit(0)
    os._exit(1)


def _mounted() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            yield Path(fields[4])


def _end_all(group: Group) -> None:
    """End what is left in the group; only processes that the benchmark started are ever in it."""
    deadline = time.monotonic() + 5
    while group.pids() and time.monotonic() < deadline:
        for pid in group.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
