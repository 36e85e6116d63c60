"""Count the system calls that one worker makes for a short connection and for a round trip.

    python3 -m benchmarks.syscalls [--operations N] [--python PROGRAM] [--way WAY]

A proxy with one worker is put under a load of N operations by one client while strace counts the
worker's calls. What an operation costs is the difference between a count of 2 N and one of N, so
that calls that come with the connection, the attaching or the passing of time cancel out.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Counter as Counts
from typing import Iterator, List

from . import accounting, native, processes, proxies
from .native import Programs
from .proxies import Running
from .rounds import LOADS
from .ways import WAYS, Way

ROOT = Path(__file__).resolve().parent.parent
BACKEND_THREADS = 4
ATTACH_TIMEOUT = 10.0
QUIET_SECONDS = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=500, metavar="N")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the proxy")
    native_ways = [way.name for way in WAYS.values() if not way.emulated]
    parser.add_argument("--way", choices=native_ways, default=native_ways[0])
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        print("syscalls: strace is missing; install the package strace", file=sys.stderr)
        return 1
    for load in LOADS[:2]:
        found = count(WAYS[arguments.way], load.name, arguments.operations, arguments.python)
        print(table(load.title, found))
    return 0


def count(way: Way, mode: str, operations: int, python: str) -> dict[str, float]:
    """System calls by name, for one operation."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        programs = native.build(folder)
        accounts = accounting.Accounting(None, "")
        site = proxies.new_site(way.listens, folder, python, ROOT, accounts)
        with ExitStack() as stack:
            server = native.backend(programs, accounts, way.connects, BACKEND_THREADS)
            backend = stack.enter_context(server)
            proxy = proxies.started(site, proxies.ours(workers=1), backend.place)
            running = stack.enter_context(proxy)
            running.await_ready()
            once = _counted(programs, running, mode, operations, folder)
            twice = _counted(programs, running, mode, 2 * operations, folder)
    calls = sorted(set(once) | set(twice))
    return {call: (twice[call] - once[call]) / operations for call in calls}


def table(title: str, calls: dict[str, float]) -> str:
    """One load's calls as Markdown, the frequent ones first; what rounds to nothing is left out."""
    frequent = sorted(
        ((number, call) for call, number in calls.items() if abs(number) >= 0.005), reverse=True
    )
    lines: List[str] = [f"| {title} | calls |", "| --- | --- |"]
    lines += [f"| {call} | {number:.2f} |" for number, call in frequent]
    lines.append(f"| **all** | **{sum(calls.values()):.2f}** |\n")
    return "\n".join(lines)


def _counted(
    programs: Programs, running: Running, mode: str, operations: int, folder: Path
) -> Counts[str]:
    worker = processes.workers(running.process.pid)[0]
    summary = folder / "strace"
    with _traced(worker, summary):
        done = native.run_load(
            programs, mode, running.place.target, seconds=60, count=operations, threads=1
        )
        time.sleep(QUIET_SECONDS)
    if done.operations != operations or done.errors:
        raise SystemExit(f"syscalls: {done.operations} of {operations} done, {done.errors}")
    return _parse(summary.read_text())


@contextmanager
def _traced(pid: int, summary: Path) -> Iterator[None]:
    tracer = subprocess.Popen(
        ["strace", "-f", "-c", "-U", "name,calls", "-o", str(summary), "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_tracer(pid, tracer)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def _await_tracer(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + ATTACH_TIMEOUT
    while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("syscalls: strace cannot attach to the worker; run as root")
        time.sleep(0.01)


def _parse(text: str) -> Counts[str]:
    """strace's table: a name and a number a line, between rules, and a total."""
    counts: Counts[str] = Counter()
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 2 and fields[1].isdigit() and fields[0] != "total":
            counts[fields[0]] = int(fields[1])
    return counts


if __name__ == "__main__":
    sys.exit(main())
