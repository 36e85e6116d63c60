"""Many services: what one process for all of them costs, beside a process for each.

The endpoint is given by name, so that what looks names up is part of what is measured. A peer is a
process for each service, as it has to be. systemd-socket-proxyd has had one connection, since
before that systemd-socket-activate stands in its place.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from tests.support.processes import title

from . import processes
from .footprint import BLOCK, FRESH, HAS_SERVED, SERVED, SETTLE_SECONDS
from .native import run_load
from .places import Place
from .proxies import (
    NAME,
    OURS,
    STABLE_SECONDS,
    START_TIMEOUT,
    Proxy,
    Running,
    StartFailed,
    ours,
    ours_for,
    started,
    write_services,
)
from .rounds import LOADS, Bench, Sample, run_rounds

SERVICES = 25
WORKERS_EACH = 4
SHARED = 25
OWN_POOLS = f"{OURS}, {WORKERS_EACH} workers each"
ONE_POOL = f"{OURS}, {SHARED} workers shared"
FOR_EACH = f"{OURS}, -w {WORKERS_EACH}"
LISTENERS = f"{SERVICES} listeners"
LISTENER = "one listener"
RESOLVER_TITLE = "vsock-proxy: resolver"


@dataclass(frozen=True)
class Memory:
    """Proportional set sizes of all processes, in KiB."""

    proxy: str
    state: str
    programs: int
    processes: int
    in_all: float


@dataclass(frozen=True)
class Start:
    """Seconds from starting the first program until all ports accept."""

    proxy: str
    programs: int
    seconds: float


@dataclass(frozen=True)
class Reload:
    """Seconds from SIGHUP until a client was answered by the one endpoint that is new.

    disturbed: live connections, one to each service, that did not survive it; replaced: workers
    of other pools that are not there any more.
    """

    proxy: str
    seconds: float
    disturbed: int
    replaced: int


@dataclass(frozen=True)
class Idle:
    """How often processes woke while nobody came; lookups: those of the resolver."""

    proxy: str
    processes: int
    seconds: float
    woken: int
    lookups: int


@dataclass(frozen=True)
class Found:
    """Everything about many services."""

    memory: List[Memory]
    starts: List[Start]
    reloads: List[Reload]
    idle: List[Idle]
    rates: List[Sample]


def from_record(record: Dict[str, Any]) -> Found:
    return Found(
        memory=[Memory(**each) for each in record["memory"]],
        starts=[Start(**each) for each in record["starts"]],
        reloads=[Reload(**each) for each in record["reloads"]],
        idle=[Idle(**each) for each in record["idle"]],
        rates=[Sample(**each) for each in record["rates"]],
    )


def measure(
    bench: Bench, peers: Sequence[Proxy], starts: int, rounds: int, idle_seconds: float
) -> Found:
    own = [own_pools(), one_pool()]
    everyone = [*own, ours(WORKERS_EACH, name=FOR_EACH, host=NAME), *peers]
    found = Found(
        memory=[memory for proxy in everyone for memory in _memory(bench, proxy)],
        starts=[_start(bench, proxy) for _ in range(starts) for proxy in everyone],
        reloads=[_reload(bench, *kind) for _ in range(starts) for kind in _kinds()],
        idle=[_idle(bench, proxy, idle_seconds) for proxy in own],
        rates=_rates(bench, rounds),
    )
    for line in describe(found):
        bench.report(line)
    return found


def own_pools() -> Proxy:
    return ours_for(SERVICES, SHARED, WORKERS_EACH, OWN_POOLS)


def one_pool() -> Proxy:
    return ours_for(SERVICES, SHARED, None, ONE_POOL)


def describe(found: Found) -> Iterator[str]:
    for memory in found.memory:
        yield (
            f"services  {memory.proxy:31} {memory.processes:5} processes  {memory.state:51}"
            f" {memory.in_all / 1024:8.1f} MiB in all"
        )
    for start in found.starts:
        yield f"services  {start.proxy:31} all accept after {start.seconds * 1e3:7.1f} ms"
    for reload in found.reloads:
        yield (
            f"services  {reload.proxy:31} reloaded after {reload.seconds * 1e3:7.1f} ms,"
            f" {reload.disturbed} disturbed, {reload.replaced} replaced"
        )
    for idle in found.idle:
        yield (
            f"services  {idle.proxy:31} idle: woken {idle.woken} times in {idle.seconds:.0f} s,"
            f" {idle.lookups} times for lookups"
        )


@contextmanager
def _fleet(bench: Bench, proxy: Proxy) -> Iterator[List[Running]]:
    """As many programs as it takes for all services, started one right after the other."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(started(bench.site, proxy, bench.backend.place))
            for _ in range(SERVICES // proxy.services)
        ]


def _await_all(fleet: Sequence[Running]) -> None:
    for running in fleet:
        for port in running.place.ports:
            running.await_connection(port).close()


def _pids(fleet: Sequence[Running]) -> List[int]:
    return [pid for running in fleet for pid in processes.tree(running.process.pid)]


def _await_stable(fleet: Sequence[Running]) -> None:
    """All processes are there and have become quiet; those of this proxy without a client."""
    deadline = time.monotonic() + START_TIMEOUT
    if fleet[0].name.startswith(OURS):
        while not all(map(_listens, fleet)) and time.monotonic() < deadline:
            time.sleep(STABLE_SECONDS / 10)
    else:
        _await_all(fleet)
    count, since = 0, time.monotonic()
    while time.monotonic() < min(deadline, since + STABLE_SECONDS):
        time.sleep(STABLE_SECONDS / 10)
        now = len(_pids(fleet))
        if now != count:
            count, since = now, time.monotonic()
    time.sleep(SETTLE_SECONDS)


def _listens(running: Running) -> bool:
    place = running.place
    return all(os.path.exists(place.file_of(port)) for port in place.ports)


def _memory(bench: Bench, proxy: Proxy) -> Iterator[Memory]:
    with _fleet(bench, proxy) as fleet:
        _await_stable(fleet)
        yield _sizes(proxy, FRESH, fleet)
        workers = sum(len(processes.workers(running.process.pid)) for running in fleet)
        if not workers:
            return
        for running in fleet:
            threads = workers // len(fleet)
            run_load(
                bench.programs,
                "short",
                running.place.target,
                seconds=60,
                count=threads * SERVED,
                threads=threads,
            )
        time.sleep(SETTLE_SECONDS)
        yield _sizes(proxy, HAS_SERVED, fleet)


def _sizes(proxy: Proxy, state: str, fleet: Sequence[Running]) -> Memory:
    sizes = [processes.pss_kib(pid) for pid in _pids(fleet)]
    return Memory(proxy.name, state, len(fleet), len(sizes), sum(sizes))


def _start(bench: Bench, proxy: Proxy) -> Start:
    with _fleet(bench, proxy) as fleet:
        _await_all(fleet)
        return Start(proxy.name, len(fleet), time.monotonic() - fleet[0].started)


def _kinds() -> List[Tuple[Proxy, Optional[int]]]:
    return [(own_pools(), WORKERS_EACH), (one_pool(), None)]


def _reload(bench: Bench, proxy: Proxy, each: Optional[int]) -> Reload:
    with _fleet(bench, proxy) as (running,), socket.create_server(("127.0.0.1", 0)) as new:
        _await_stable([running])
        place = running.place
        changed = place.ports[SERVICES // 2]
        backends = dict.fromkeys(place.ports, bench.backend.place.port)
        backends[changed] = new.getsockname()[1]
        with ExitStack() as stack:
            live = [stack.enter_context(place.connect(port)) for port in place.ports]
            if not all(map(_echoes, live)):
                raise StartFailed(f"{proxy.name} does not serve all of its ports")
            others = _other_workers(running, changed)
            write_services(bench.site, place, backends, each)
            began = time.monotonic()
            os.kill(running.process.pid, signal.SIGHUP)
            _await_new(place, changed, new)
            seconds = time.monotonic() - began
            time.sleep(SETTLE_SECONDS)
            disturbed = sum(not _echoes(connection) for connection in live)
            replaced = len(set(others) - set(processes.tree(running.process.pid)))
    return Reload(proxy.name, seconds, disturbed, replaced if each else 0)


def _other_workers(running: Running, changed: int) -> List[int]:
    of_changed = f"{processes.WORKER_TITLE}{changed}/"
    workers = processes.workers(running.process.pid)
    return [pid for pid in workers if not title(pid).startswith(of_changed)]


def _await_new(place: Place, port: int, new: socket.socket) -> None:
    """Connect again and again until the new endpoint has answered a client."""
    deadline = time.monotonic() + START_TIMEOUT
    poll = select.poll()
    poll.register(new, select.POLLIN)
    while time.monotonic() < deadline:
        with place.connect(port) as client:
            client.sendall(BLOCK)
            poll.register(client, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(START_TIMEOUT * 1000)}
            poll.unregister(client)
            if new.fileno() in ready:
                connection, _ = new.accept()
                with connection:
                    connection.sendall(connection.recv(len(BLOCK), socket.MSG_WAITALL))
                    if client.recv(len(BLOCK), socket.MSG_WAITALL) == BLOCK:
                        return
    raise StartFailed("after SIGHUP no client was led to the new endpoint")


def _echoes(connection: socket.socket) -> bool:
    try:
        connection.sendall(BLOCK)
        return connection.recv(len(BLOCK), socket.MSG_WAITALL) == BLOCK
    except OSError:
        return False


def _idle(bench: Bench, proxy: Proxy, seconds: float) -> Idle:
    with _fleet(bench, proxy) as fleet:
        _await_stable(fleet)
        pids = _pids(fleet)
        resolvers = [pid for pid in pids if title(pid).startswith(RESOLVER_TITLE)]
        others = [pid for pid in pids if pid not in resolvers]
        before = [sum(map(processes.voluntary_switches, group)) for group in (others, resolvers)]
        time.sleep(seconds)
        after = [sum(map(processes.voluntary_switches, group)) for group in (others, resolvers)]
    woken, lookups = (now - then for now, then in zip(after, before))
    return Idle(proxy.name, len(pids), seconds, woken, lookups)


def _rates(bench: Bench, rounds: int) -> List[Sample]:
    many = ours_for(SERVICES, SHARED, None, LISTENERS)
    return run_rounds(
        bench, [ours(SHARED, name=LISTENER, host=NAME), many], LOADS[:1], rounds, direct=False
    )
