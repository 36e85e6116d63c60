"""What a proxy costs beside the traffic: idle memory, start, many connections at once, wake-ups.

`Memory` is read three times: fresh after the start; after each worker has served short connections,
because each page that serving writes to is copied from the master's; and after each has relayed a
MiB each way, because a buffer costs its pages only once they have been written to.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import List, Optional, Sequence

from . import processes
from .native import held_open, run_load
from .proxies import OURS, PROXYD, START_TIMEOUT, Proxy, Running, ours, proxyd, started
from .rounds import LOADS, MIB, Bench, Sample, run_rounds

SPARE_CONNECTIONS = 100
HELD_FOR_MEMORY = 100
FRESH = "idle, fresh"
# On average; from the first few on, a worker's memory stays as it is.
SERVED = 100
HAS_SERVED = f"idle, each worker has served {SERVED} short connections"
SETTLE_SECONDS = 1.0
BLOCK_MAGIC = 0x6B6F636B76656E63  # of protocol.h
REQUEST_ECHO = 1
BLOCK = struct.pack("<4Q32s", BLOCK_MAGIC, REQUEST_ECHO, 0, 0, bytes(32))


@dataclass(frozen=True)
class Memory:
    """Proportional set sizes, in KiB."""

    proxy: str
    state: str
    connections: int
    processes: int
    workers: int
    a_worker: Optional[float]
    in_all: float


@dataclass(frozen=True)
class Start:
    """Seconds from starting the program to the first connection, and to the first echo."""

    proxy: str
    workers: Optional[int]
    connected: float
    echoed: float


@dataclass(frozen=True)
class Held:
    """Connections open at once; the seconds from starting the program until each had its echo."""

    proxy: str
    workers: int
    wanted: int
    echoed: int
    seconds: float
    errors: dict[str, int]


@dataclass(frozen=True)
class Switches:
    """How often workers were woken, for connections made one after the other."""

    workers: int
    connections: int
    a_connection: float


def measure_scale(bench: Bench, counts: Sequence[int], rounds: int) -> List[Sample]:
    """Short connections per second with ever more workers."""
    proxies = [ours(workers=count, name=with_workers(count)) for count in counts]
    return run_rounds(bench, proxies, LOADS[:1], rounds, direct=False)


def with_workers(count: int) -> str:
    return f"{OURS} -w {count}"


def measure_memory(bench: Bench, counts: Sequence[int], peers: Sequence[Proxy]) -> List[Memory]:
    found: List[Memory] = []
    for count in counts:
        with started(bench.site, ours(workers=count), bench.backend.place) as running:
            running.await_ready()
            _await_workers(running, count)
            found.append(_memory(running, FRESH, 0))
            target = running.place.target
            run_load(
                bench.programs,
                "short",
                target,
                seconds=60,
                count=count * SERVED,
                threads=count,
            )
            time.sleep(SETTLE_SECONDS)
            found.append(_memory(running, HAS_SERVED, 0))
            for mode in ("up", "down"):
                run_load(
                    bench.programs, mode, target, seconds=30, count=count, size=MIB, threads=count
                )
            time.sleep(SETTLE_SECONDS)
            found.append(_memory(running, "idle, each worker has relayed 2 MiB", 0))
    for proxy in [ours(workers=HELD_FOR_MEMORY), *peers]:
        found.extend(_memory_of_any(bench, proxy))
    for memory in found:
        bench.report(
            f"memory  {memory.proxy:22} {memory.workers:5} workers  {memory.state:51}"
            f" {memory.in_all / 1024:8.1f} MiB in all"
        )
    return found


def _await_workers(running: Running, count: int) -> None:
    """On a busy machine, processes may be long in coming after the first connection."""
    deadline = time.monotonic() + START_TIMEOUT
    while len(processes.workers(running.process.pid)) < count and time.monotonic() < deadline:
        time.sleep(SETTLE_SECONDS / 10)


def _memory_of_any(bench: Bench, proxy: Proxy) -> List[Memory]:
    with started(bench.site, proxy, bench.backend.place) as running:
        running.await_ready()
        idle = _memory(running, FRESH, 0)
        with held_open(bench.programs, running.place.target, HELD_FOR_MEMORY) as outcome:
            held = _memory(running, f"{outcome.operations} connections open", outcome.operations)
    return [held] if proxy.name == OURS else [idle, held]


def _memory(running: Running, state: str, connections: int) -> Memory:
    sizes = {pid: processes.pss_kib(pid) for pid in processes.tree(running.process.pid)}
    workers = [sizes[pid] for pid in processes.workers(running.process.pid) if pid in sizes]
    return Memory(
        proxy=running.name,
        state=state,
        connections=connections,
        processes=len(sizes),
        workers=len(workers),
        a_worker=sum(workers) / len(workers) if workers else None,
        in_all=sum(sizes.values()),
    )


def measure_starts(
    bench: Bench, counts: Sequence[int], peers: Sequence[Proxy], rounds: int
) -> List[Start]:
    found: List[Start] = []
    for _ in range(rounds):
        for count in counts:
            found.append(_start(bench, ours(workers=count), count))
        for peer in peers:
            found.append(_start(bench, peer, None))
    for start in found:
        bench.report(
            f"start   {start.proxy:22} -w {start.workers or '-':<5}"
            f" connected {start.connected * 1e3:7.1f} ms  first echo {start.echoed * 1e3:7.1f} ms"
        )
    return found


def _start(bench: Bench, proxy: Proxy, workers: Optional[int]) -> Start:
    with started(bench.site, proxy, bench.backend.place) as running:
        connection = running.await_connection()
        connected = time.monotonic() - running.started
        with connection:
            connection.sendall(BLOCK)
            received = b""
            while len(received) < len(BLOCK):
                received += connection.recv(len(BLOCK)) or _cut(proxy.name)
            return Start(proxy.name, workers, connected, time.monotonic() - running.started)


def _cut(name: str) -> bytes:
    raise ConnectionError(f"{name} closed its first connection before the echo was whole")


def measure_held(bench: Bench, count: int, peers: Sequence[Proxy], rounds: int) -> List[Held]:
    """Many connections at once; systemd-socket-proxyd must be told to take more than its 256."""
    allowed = [
        proxyd(connections=count + SPARE_CONNECTIONS) if peer.name == PROXYD else peer
        for peer in peers
    ]
    found: List[Held] = []
    for _ in range(rounds):
        found.extend(_held(bench, proxy, count) for proxy in [ours(workers=count), *allowed])
    for held in found:
        errors = "".join(f"  ERRORS {count} x {what}" for what, count in held.errors.items())
        bench.report(
            f"held    {held.proxy:22} {held.echoed} of {held.wanted} echoed {held.seconds:6.2f} s"
            f" after the start{errors}"
        )
    return found


def _held(bench: Bench, proxy: Proxy, count: int) -> Held:
    with started(bench.site, proxy, bench.backend.place) as running:
        running.await_connection().close()
        with held_open(bench.programs, running.place.target, count) as outcome:
            seconds = time.monotonic() - running.started
            workers = len(processes.workers(running.process.pid))
        return Held(proxy.name, workers, count, outcome.operations, seconds, outcome.errors)


def measure_switches(bench: Bench, counts: Sequence[int], connections: int) -> List[Switches]:
    """One client, one connection after the other: all but one worker have no reason to wake."""
    found: List[Switches] = []
    for count in counts:
        with started(bench.site, ours(workers=count), bench.backend.place) as running:
            running.await_ready()
            pids = processes.workers(running.process.pid)
            before = sum(map(processes.voluntary_switches, pids))
            outcome = run_load(
                bench.programs,
                "short",
                running.place.target,
                seconds=60,
                count=connections,
                threads=1,
            )
            time.sleep(SETTLE_SECONDS)
            woken = sum(map(processes.voluntary_switches, pids)) - before
        each = woken / max(outcome.operations, 1)
        bench.report(
            f"switches  -w {count}: {each:.2f} a connection over {outcome.operations} connections"
        )
        found.append(Switches(count, outcome.operations, each))
    return found
