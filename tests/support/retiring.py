"""Workers whose pool is retired at the very moment that clients come, again and again.

Run as a program, which has no other thread: python -m tests.support.retiring FOLDER HOW [ROUNDS]

Each round has old workers and new ones. The new ones wait on the same listeners behind the old, so
a client wakes only an old worker. Then clients come, and the old workers are told to end. A line
of JSON tells which clients were served. HOW is `line` or `opcode`: there is one client, and the one
old worker gets the signal at a different instruction in each round. With `race` there are several
of each, and a process apart sends the signal a little before or after the clients come. ROUNDS is
the number of rounds.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional

from tests.support import processes
from tests.support.interrupting import PATIENCE, Injector
from tests.support.timing import wait_until
from vsock_proxy.endpoint.addresses import AddressTable, make_address
from vsock_proxy.observing.saturation import Alarm
from vsock_proxy.observing.scoreboard import Scoreboard, State
from vsock_proxy.observing.untold import Untold
from vsock_proxy.process.forking import fork
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Signals
from vsock_proxy.serving.listener import Listener, open_listener
from vsock_proxy.serving.route import Route
from vsock_proxy.serving.upstream import Upstream
from vsock_proxy.serving.worker import Duty, Worker
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

SERVICES = 3
WORKERS = 2
CLIENTS = 2
# The signal comes up to these nanoseconds before or after the clients, in this number of steps.
SPREAD, STEPS = 400_000, 41
# Nanoseconds until both are ready to act at the same moment.
AHEAD = 2_000_000
# The exit code of a worker that ended before its signal's turn had come.
SPARED = 3


class Site:
    """What a master makes once for its workers, and an endpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.signals = Signals()
        self.worker = Worker(self.signals, Lifeline(), Untold())
        self.server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint(*self.server.getsockname())
        self.table = AddressTable(self.endpoint.port)
        self.table.publish([make_address(socket.AF_INET, self.server.getsockname())])
        self.alarm = os.pipe()[1]

    def listen(self, services: int) -> List[Listener]:
        options = ServiceOptions(uds_path=str(self._folder / "v"))
        return [
            open_listener(ServiceSettings(8000 + number, self.endpoint, options))
            for number in range(services)
        ]


class Pool:
    """Some workers that wait on the same listeners."""

    def __init__(
        self,
        site: Site,
        listeners: List[Listener],
        workers: int,
        injector: Optional[Injector] = None,
    ) -> None:
        """Returns once they wait, or have ended."""
        upstream = Upstream(site.table, 5)
        routes = tuple(
            Route(str(number), listener, site.endpoint, upstream)
            for number, listener in enumerate(listeners, 8000)
        )
        self.board = Scoreboard(workers)
        duty = Duty(routes, self.board, Alarm(self.board, site.alarm))

        self.board.retired = injector is not None

        def be_worker(number: int) -> int:
            sys.settrace(injector.trace if injector else None)  # type: ignore[arg-type]
            site.worker.run(duty, number, lambda: None)
            sys.settrace(None)
            return SPARED if injector and not injector.fired else os.EX_OK

        self.pids = [
            fork(site.signals, lambda number=number: be_worker(number))  # type: ignore[misc]
            for number in range(1, workers + 1)
        ]
        wait_until(lambda: all(map(self._rests, range(1, workers + 1), self.pids)), "they wait")

    def _rests(self, number: int, pid: int) -> bool:
        idle = self.board.row(number).state is State.IDLE
        return not processes.is_alive(pid) or (idle and processes.state(pid) == "S")

    @property
    def served(self) -> int:
        return sum(row.served for row in self.board.rows())

    def retire(self) -> None:
        self.board.retired = True
        self.tell(signal.SIGTERM)

    def tell(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def wait(self) -> List[int]:
        """Their exit codes, negative if they were killed."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]


def main() -> None:
    """See the module's text."""
    folder, how = Path(sys.argv[1]), sys.argv[2]
    logging.getLogger().setLevel(logging.CRITICAL)
    site = Site(folder)
    if how == "race":
        for number in range(int(sys.argv[3])):
            print(json.dumps(race(site, number)), flush=True)
        return
    number, fired = 0, True
    while fired:
        number += 1
        told = at_instruction(site, Injector(number, how, "retire"))
        fired = bool(told["fired"])
        print(json.dumps({"number": number, **told}), flush=True)


def at_instruction(site: Site, injector: Injector) -> Dict[str, object]:
    """One client of an old worker that is told to end at one instruction, and of a new one."""
    (listener,) = site.listen(1)
    old = Pool(site, [listener], 1, injector)
    new = Pool(site, [listener], 1)
    client = connect(str(listener.path))
    served = await_connections(site, 1)
    codes: List[int] = []
    if served:
        wait_until(lambda: old.served + new.served, "it is counted")
    # The others let go of the listener: what is left of it is the old worker's.
    new.tell(signal.SIGTERM)
    listener.close()
    by_old, refused = bool(old.served), None
    if by_old and old.board.row(1).drains:
        codes = new.wait()
        wait_until(lambda: processes.state(old.pids[0]) == "S", "it relays")
        refused = is_refused(str(listener.path))
    for sock in (*served, client):
        sock.close()
    # If the instruction was never reached, nothing else ends it.
    old.tell(signal.SIGTERM)
    (code,) = old.wait()
    codes = codes or new.wait()
    listener.remove()
    return {
        "fired": code != SPARED,
        "served": len(served),
        "by_old": by_old,
        "refused": refused,
        "codes": [*codes, code],
    }


def race(site: Site, number: int) -> Dict[str, object]:
    """Clients of several services, and old workers that are told to end at about the same time."""
    listeners = site.listen(SERVICES)
    old = Pool(site, listeners, WORKERS)
    new = Pool(site, listeners, CLIENTS)
    at = time.monotonic_ns() + AHEAD
    teller = fork(site.signals, lambda: retire_at(old, at))
    await_time(at + (number % STEPS - STEPS // 2) * SPREAD // STEPS)
    paths = [listeners[(number + client) % SERVICES].path for client in range(CLIENTS)]
    clients = [connect(str(path)) for path in paths]
    served = await_connections(site, CLIENTS)
    os.waitpid(teller, 0)
    by_old = old.served
    for sock in (*served, *clients):
        sock.close()
    new.tell(signal.SIGTERM)
    for listener in listeners:
        listener.close()
        listener.remove()
    return {"served": len(served), "by_old": by_old, "codes": old.wait() + new.wait()}


def retire_at(pool: Pool, at: int) -> None:
    await_time(at)
    pool.retire()


def await_time(at: int) -> None:
    """Wait without sleeping, because a sleep may take longer."""
    while time.monotonic_ns() < at:
        pass


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


def is_refused(path: str) -> bool:
    try:
        connect(path).close()
    except ConnectionRefusedError:
        return True
    return False


def await_connections(site: Site, count: int) -> List[socket.socket]:
    """The connections that come to the endpoint; count is the most."""
    connections: List[socket.socket] = []
    wait = select.poll()
    wait.register(site.server, select.POLLIN)
    while len(connections) < count and wait.poll(PATIENCE):
        connections.append(site.server.accept()[0])
    return connections


if __name__ == "__main__":
    main()
