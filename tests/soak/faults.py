"""What is done to the proxy and to its surroundings, one thing after the other, by chance."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from typing import Callable, Iterator, List, Optional

from tests.soak.tally import Tally
from tests.soak.world import HERE, NAME, THERE, World
from tests.support import board, processes
from tests.support.dns import Mood
from tests.support.program import Proxy
from tests.support.timing import let_pass

PAUSE_BETWEEN = 0.5
PORT_RANGE = "net.ipv4.ip_local_port_range"
USUAL_PORTS = "32768 60999"


class Faults:
    """All faults; inject() is one of them, and all that it takes."""

    def __init__(self, world: World, tally: Tally, chance: random.Random, unread: float) -> None:
        """unread is for how many seconds nobody reads the log, when that is what happens."""
        self._world = world
        self._tally = tally
        self._chance = chance
        self._unread = unread
        self._known: List[Callable[[], None]] = [
            self.kill_a_worker,
            self.stop_a_worker,
            self.exhaust_descriptors,
            self.reload,
            self.reload_a_bad_file,
            self.reload_a_fifo,
            self.ask_for_the_board,
            self.endpoint_goes_and_returns,
        ]
        if world.network:
            self._known += [self.dns_fails, self.dns_lies, self.endpoint_is_oneself]

    def inject(self) -> None:
        """Make one fault happen, and undo it."""
        fault = self._chance.choice(self._known)
        self._tally.faults[fault.__name__] += 1
        fault()
        let_pass(PAUSE_BETWEEN * self._chance.random(), why="between faults all goes well")

    def leave_log_unread(self) -> None:
        """Read no line of the log for a while, in which other faults happen; all must be served."""
        self._tally.faults["leave_log_unread"] += 1
        before = sum(self._tally.results.values())
        until = time.monotonic() + self._unread
        with self._proxy.log.unread():
            while time.monotonic() < until:
                self._proxy.send(signal.SIGUSR1)
                self._chance.choice((self.kill_a_worker, self.reload, self.reload_a_bad_file))()
                let_pass(PAUSE_BETWEEN, why="lines of this fault are written")
            served = sum(self._tally.results.values()) - before
        if not served:
            self._tally.unexplained("nobody was served while the log was not read")
        self._must_answer()

    @property
    def _proxy(self) -> Proxy:
        return self._world.proxy

    # Processes

    def kill_a_worker(self) -> None:
        # One that has been busy for a moment, rather.
        pid = self._a_worker(" -> ") or self._a_worker()
        if pid:
            self._tally.killed += 1
            os.kill(pid, signal.SIGKILL)

    def stop_a_worker(self) -> None:
        pid = self._a_worker()
        if pid:
            os.kill(pid, signal.SIGSTOP)
            let_pass(0.5, why="the other workers go on meanwhile")
            os.kill(pid, signal.SIGCONT)

    def exhaust_descriptors(self) -> None:
        pids = self._proxy.workers()
        chosen = self._chance.sample(pids, min(3, len(pids)))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # With none or one left: accept() fails, or else the endpoint's socket.
        with self._tally.outage():
            for pid in chosen:
                limit_files(pid, processes.open_files(pid) + self._chance.randrange(2), hard)
            let_pass(0.3, why="clients come while there are no descriptors")
            for pid in chosen:
                limit_files(pid, 64, hard)

    def ask_for_the_board(self) -> None:
        self._proxy.send(signal.SIGUSR1)

    def _a_worker(self, title: str = "") -> Optional[int]:
        workers = self._proxy.workers(title)
        return self._chance.choice(workers) if workers else None

    # The file

    def reload(self) -> None:
        self._proxy.send(signal.SIGHUP)

    def reload_a_bad_file(self) -> None:
        self._world.allowlist.write_bytes(self._chance.randbytes(100))
        self._proxy.send(signal.SIGHUP)
        let_pass(0.1, why="the master reads the bad file")
        self._world.write_allowlist()

    def reload_a_fifo(self) -> None:
        self._world.allowlist.unlink()
        os.mkfifo(self._world.allowlist)
        self._proxy.send(signal.SIGHUP)
        self._must_answer()
        self._world.write_allowlist()

    def _must_answer(self) -> None:
        """The master must act on a signal soon."""
        try:
            board.ask(self._proxy)
        except AssertionError:
            self._tally.unexplained("the master does not answer")

    # The endpoint and its name

    def endpoint_goes_and_returns(self) -> None:
        with self._without_endpoint():
            let_pass(self._chance.random(), why="clients come while nobody listens")

    def endpoint_is_oneself(self) -> None:
        """Nobody listens at the endpoint's port, which connections out of here may have too."""
        with self._without_endpoint(), self._ports(f"{self._world.port} {self._world.port + 1}"):
            let_pass(0.5, why="clients come while nobody listens")

    def dns_fails(self) -> None:
        assert self._world.dns
        self._world.dns.mood = self._chance.choice((Mood.NXDOMAIN, Mood.SERVFAIL, Mood.SILENT))
        let_pass(0.5, why="names are looked up meanwhile")
        self._world.dns.mood = Mood.ANSWERING

    def dns_lies(self) -> None:
        assert self._world.dns
        others = self._chance.choice(((), (THERE, HERE), (HERE,)))
        self._world.dns.set(NAME, "169.254.169.254", *others)
        let_pass(0.5, why="names are looked up meanwhile")
        self._world.dns.set(NAME, HERE)

    @contextlib.contextmanager
    def _without_endpoint(self) -> Iterator[None]:
        with self._tally.outage():
            self._world.take_endpoint_away()
            yield
            self._world.bring_endpoint_back()

    @contextlib.contextmanager
    def _ports(self, ports: str) -> Iterator[None]:
        """Connections get a port of this range, in the network of the proxy."""
        assert self._world.network
        self._world.network.run("sysctl", "-q", "-w", f"{PORT_RANGE}={ports}")
        yield
        self._world.network.run("sysctl", "-q", "-w", f"{PORT_RANGE}={USUAL_PORTS}")


def limit_files(pid: int, count: int, hard: int) -> None:
    """Set the soft limit of a process that may just have ended."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))
