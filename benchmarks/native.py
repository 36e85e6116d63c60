"""The two C programs: compiled when the benchmark starts, run as the backend and as the load."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterator

from .accounting import Accounting, Group
from .places import UNIX, Place

HERE = Path(__file__).resolve().parent
LOAD_THREADS = 4
MAX_OPERATIONS = 20_000_000
LOAD_TIMEOUT_SECONDS = 60.0
# Of the guest behind the VMM for which the backend stands on a Unix socket.
GUEST_PORT = 5000


class CompilerMissing(Exception):
    """There is no C compiler."""


@dataclass(frozen=True)
class Programs:
    """The compiled programs."""

    load: Path
    backend: Path


@dataclass(frozen=True)
class Backend:
    """A running backend: where it listens, and the group that counts its CPU time."""

    place: Place
    group: Group


@dataclass(frozen=True)
class Outcome:
    """What one run of the load did."""

    seconds: float
    operations: int
    median_us: float
    p99_us: float
    cpu_seconds: float
    errors: Dict[str, int]


def build(folder: Path) -> Programs:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CompilerMissing("no C compiler found (cc); install the package gcc and libc6-dev")
    for name in ("load", "backend"):
        command = [compiler, "-O2", "-pthread", "-o", str(folder / name), str(HERE / f"{name}.c")]
        subprocess.run(command, check=True)
    return Programs(folder / "load", folder / "backend")


@contextmanager
def backend(programs: Programs, accounts: Accounting, kind: str, threads: int) -> Iterator[Backend]:
    """A backend for up to `threads` connections at once; it ends when its standard input does."""
    place = Place(kind, GUEST_PORT, programs.backend.with_name("guest"))
    with accounts.group() as group:
        process = subprocess.Popen(
            [str(programs.backend), str(threads), place.target if kind == UNIX else kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=group.enter,  # noqa: PLW1509 - there are no threads
        )
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline()) or GUEST_PORT
            yield Backend(replace(place, port=port), group)
        finally:
            process.communicate()
            Path(place.file).unlink(missing_ok=True)


def run_load(
    programs: Programs,
    mode: str,
    target: str,
    *,
    seconds: float,
    count: int = MAX_OPERATIONS,
    size: int = 1,
    threads: int = LOAD_THREADS,
) -> Outcome:
    command = [str(programs.load), mode, target, str(threads), str(seconds), str(count), str(size)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=seconds + LOAD_TIMEOUT_SECONDS,
        check=True,
    )
    return Outcome(**json.loads(done.stdout))


@contextmanager
def held_open(programs: Programs, target: str, count: int) -> Iterator[Outcome]:
    """`count` connections open at once, one block echoed on each, while the context lasts."""
    process = subprocess.Popen(
        [str(programs.load), "hold", target, "1", "1", str(count), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield Outcome(**json.loads(process.stdout.readline()))
    finally:
        process.communicate()
