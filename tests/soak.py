"""Mixed traffic with random faults for a given time, and what must hold at the end.

    python -m tests.soak --seconds 1200 --seed 7

Not a test of the default run. Clients of every manner keep the proxy busy while a fault after the
other is injected. Each client knows what must arrive, so that it can tell at the end of its
connection: whole, or cut, or wrong. A cut is right only where a fault explains it. When the time
is over and the faults are gone, the proxy must be as it was: all workers idle, no descriptor more,
no zombie, and its memory as large as before.

Run by root it lives in a network of its own, in which the endpoint has a name, and DNS is one more
thing that fails.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Counter, Iterator, List, Optional, Tuple

from tests.support import board, processes
from tests.support.dns import Mood, NameServer
from tests.support.namespaces import Namespace, why_not
from tests.support.program import Proxy
from tests.support.servers import CHUNK, Server, echo
from tests.support.timing import wait_until
from tests.support.transports import Hybrid

NAME, HERE, THERE = "endpoint.test", "127.0.0.2", "127.0.0.3"
WORKERS = 8
CLIENTS = 12
PAUSE_BETWEEN_FAULTS = 0.5
# Pages that a process writes to for the first time are its own from then on; a leak is more.
MEMORY_TOLERANCE = 1.3
ALLOWLIST = "allowlist:\n- {{address: {host}, port: {port}}}\n"


@dataclass
class Tally:
    """What became of the connections, and what faults may explain of it."""

    results: Counter[str] = field(default_factory=collections.Counter)
    faults: Counter[str] = field(default_factory=collections.Counter)
    unexplained: List[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Times between which the endpoint was away, and how many workers were killed.
    outages: List[Tuple[float, float]] = field(default_factory=list)
    killed: int = 0
    cut_without_outage: int = 0

    def add(self, result: str) -> None:
        with self.lock:
            self.results[result] += 1

    def cut(self, began: float, ended: float) -> None:
        """A connection was cut: by an outage of the endpoint, or else by the end of a worker."""
        with self.lock:
            self.results["cut"] += 1
            if not any(start <= ended and began <= end for start, end in self.outages):
                self.cut_without_outage += 1

    def wrong(self, text: str) -> None:
        with self.lock:
            self.unexplained.append(text)


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: int, network: Optional[Namespace]) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._network = network
        self._tally = Tally()
        self._stop = threading.Event()
        self._dns: Optional[NameServer] = None
        self._server = self._make_server(0)
        self._proxy = self._start()

    def run(self, seconds: float) -> List[str]:
        """Soak for so long; returns what did not hold."""
        self._warm_up()
        files, memory = self._files(), self._memory()
        threads = [
            threading.Thread(target=self._be_client, args=(self._random.random(),))
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._inject()
            self._stop.wait(PAUSE_BETWEEN_FAULTS * self._random.random())
        self._stop.set()
        for thread in threads:
            thread.join()
        self._report()
        return [*self._tally.unexplained, *self._broken_invariants(files, memory)]

    def close(self) -> None:
        """End everything."""
        self._proxy.end()
        self._server.close()
        if self._dns:
            self._dns.close()

    # What is under test

    def _start(self) -> Proxy:
        host = HERE
        wrapper: List[str] = []
        if self._network:
            self._dns = self._network.call(NameServer)
            self._dns.set(NAME, HERE)
            host, wrapper = NAME, self._network.wrapper
        self._allowlist = self._folder / "allowlist.yaml"
        self._good = ALLOWLIST.format(host=host, port=self._server.port)
        self._allowlist.write_text(self._good)
        transport = Hybrid(self._folder)
        proxy = Proxy(
            transport,
            [
                *("-w", str(WORKERS), "--config", str(self._allowlist)),
                *("--resolve-interval", "0.2", "--connect-timeout", "5"),
                *(*transport.options(), str(transport.port), host, str(self._server.port)),
            ],
            wrapper=wrapper,
        )
        proxy.wait_ready()
        return proxy

    def _make_server(self, port: int) -> Server:
        if self._network:
            return self._network.call(lambda: Server(echo, HERE, port))
        return Server(echo, HERE, port)

    def _warm_up(self) -> None:
        """Let every worker touch what it will ever touch."""
        clients = [self._proxy.connect() for _ in range(WORKERS)]
        for client in clients:
            exchange_all(client, os.urandom(1 << 20))
        for client in clients:
            client.close()
        self._wait_until_idle()

    def _wait_until_idle(self) -> None:
        wait_until(
            lambda: [row.state for row in board.ask(self._proxy)] == ["idle"] * WORKERS,
            "all workers are idle",
            30,
        )

    # Traffic

    def _be_client(self, seed: float) -> None:
        chance = random.Random(seed)
        manners = (self._transfer, self._transfer, self._vanish, self._stall, self._flood)
        while not self._stop.is_set():
            try:
                chance.choice(manners)(chance)
            except (BlockingIOError, ConnectionRefusedError) as error:
                # The backlog is full for a moment.
                self._tally.add(type(error).__name__)
            except Exception as error:
                self._tally.wrong(f"a client met {error!r}")

    def _transfer(self, chance: random.Random) -> None:
        """Send and have echoed any amount, and end with a half-close."""
        data = chance.randbytes(chance.choice((1, 1000, CHUNK, chance.randrange(1 << 21))))
        began = time.monotonic()
        with self._proxy.connect() as client:
            received = exchange_all(client, data)
        if received == data:
            self._tally.add("whole")
        elif data.startswith(received):
            self._tally.cut(began, time.monotonic())
        else:
            digest = hashlib.sha256(data).hexdigest()
            self._tally.wrong(f"{len(received)} bytes that are not those sent ({digest})")

    def _vanish(self, chance: random.Random) -> None:
        """Go away in the middle."""
        with self._proxy.connect() as client, contextlib.suppress(OSError):
            client.sendall(chance.randbytes(chance.randrange(1 << 18)))
            if chance.random() < 0.5:
                client.shutdown(socket.SHUT_WR)
        self._tally.add("vanished")

    def _stall(self, chance: random.Random) -> None:
        """Send and read nothing for a while, then all."""
        data = chance.randbytes(1 << 20)
        began = time.monotonic()
        with self._proxy.connect() as client:
            received = exchange_all(client, data, pause=chance.random())
        if received == data:
            self._tally.add("stalled")
        elif data.startswith(received):
            self._tally.cut(began, time.monotonic())
        else:
            self._tally.wrong("wrong bytes after a stall")

    def _flood(self, chance: random.Random) -> None:
        """Come and go many times."""
        for _ in range(chance.randrange(100)):
            self._proxy.connect().close()
            self._tally.add("flood")

    # Faults

    def _inject(self) -> None:
        faults: List[Callable[[], None]] = [
            self._kill_a_worker,
            self._stop_a_worker,
            self._exhaust_descriptors,
            self._reload,
            self._reload_a_bad_file,
            self._ask_for_the_board,
            self._endpoint_goes_and_returns,
        ]
        if self._dns:
            faults += [self._dns_fails, self._dns_lies]
        fault = self._random.choice(faults)
        self._tally.faults[fault.__name__.strip("_")] += 1
        fault()

    def _a_worker(self) -> Optional[int]:
        workers = self._proxy.workers()
        return self._random.choice(workers) if workers else None

    def _kill_a_worker(self) -> None:
        pid = self._a_worker()
        if pid:
            self._tally.killed += 1
            os.kill(pid, signal.SIGKILL)

    def _stop_a_worker(self) -> None:
        pid = self._a_worker()
        if pid:
            os.kill(pid, signal.SIGSTOP)
            self._stop.wait(0.5)
            os.kill(pid, signal.SIGCONT)

    def _exhaust_descriptors(self) -> None:
        pids = self._proxy.workers()
        chosen = self._random.sample(pids, min(3, len(pids)))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # With none or one left: accept() fails, or else the endpoint's socket.
        started = time.monotonic()
        with self._outage(started):
            for pid in chosen:
                limit_files(pid, processes.open_files(pid) + self._random.randrange(2), hard)
            self._stop.wait(0.3)
            for pid in chosen:
                limit_files(pid, 64, hard)

    def _reload(self) -> None:
        self._proxy.send(signal.SIGHUP)

    def _reload_a_bad_file(self) -> None:
        self._allowlist.write_bytes(self._random.randbytes(100))
        self._proxy.send(signal.SIGHUP)
        self._stop.wait(0.1)
        self._allowlist.write_text(self._good)

    def _ask_for_the_board(self) -> None:
        self._proxy.send(signal.SIGUSR1)

    def _endpoint_goes_and_returns(self) -> None:
        with self._outage(time.monotonic()):
            self._server.close()
            self._stop.wait(self._random.random())
            self._server = self._make_server(self._server.port)

    def _dns_fails(self) -> None:
        assert self._dns
        self._dns.mood = self._random.choice((Mood.NXDOMAIN, Mood.SERVFAIL, Mood.SILENT))
        self._stop.wait(0.5)
        self._dns.mood = Mood.ANSWERING

    def _dns_lies(self) -> None:
        assert self._dns
        self._dns.set(NAME, "169.254.169.254", *self._random.choice(((), (THERE, HERE), (HERE,))))
        self._stop.wait(0.5)
        self._dns.set(NAME, HERE)

    @contextlib.contextmanager
    def _outage(self, began: float) -> Iterator[None]:
        """While this lasts, and a moment longer, a connection may fail."""
        with self._tally.lock:
            self._tally.outages.append((began, float("inf")))
        yield
        with self._tally.lock:
            self._tally.outages[-1] = (began, time.monotonic() + 0.5)

    # The end

    def _files(self) -> List[int]:
        return sorted(processes.open_files(pid) for pid in self._proxy.workers())

    def _memory(self) -> int:
        pids = [self._proxy.pid, *self._proxy.children()]
        return sum(processes.anonymous_kib(pid) for pid in pids)

    def _report(self) -> None:
        print("connections:", dict(self._tally.results))
        print("faults:", dict(self._tally.faults))

    def _broken_invariants(self, files: List[int], memory: int) -> Iterator[str]:
        if self._proxy.has_ended():
            yield f"the proxy has ended, {self._proxy.wait()}"
            return
        try:
            wait_until(lambda: len(self._proxy.workers()) == WORKERS, "all workers", 10)
            self._wait_until_idle()
        except AssertionError as error:
            yield str(error)
        self._warm_up()
        if self._tally.cut_without_outage > self._tally.killed:
            yield (
                f"{self._tally.cut_without_outage} connections cut, but only "
                f"{self._tally.killed} workers killed"
            )
        zombies = [pid for pid in self._proxy.children() if processes.state(pid) == "Z"]
        if zombies:
            yield f"zombies: {zombies}"
        if self._files() != files:
            yield f"descriptors: {files} before, {self._files()} after"
        if self._memory() > memory * MEMORY_TOLERANCE:
            yield f"memory: {memory} KiB before, {self._memory()} KiB after"
        else:
            print(f"memory: {memory} KiB before, {self._memory()} KiB after")
        lines = self._proxy.log.lines
        for index, line in enumerate(lines):
            if "internal error" in line:
                yield "\n".join(lines[index : index + 16])


def limit_files(pid: int, count: int, hard: int) -> None:
    """Set the soft limit of a process that may just have ended."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))


def exchange_all(client: socket.socket, data: bytes, pause: float = 0.0) -> bytes:
    """Send all and half-close, and meanwhile read up to the end; what came, however it ended."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = bytearray()
    try:
        time.sleep(pause)
        while True:
            part = client.recv(CHUNK)
            if not part:
                break
            received += part
    except (ConnectionResetError, BrokenPipeError):
        pass
    with contextlib.suppress(OSError):
        # Where the connection was cut, the sender may still wait for room.
        client.shutdown(socket.SHUT_RDWR)
    sender.join()
    return bytes(received)


def main() -> int:
    """Parse the command line, soak, say what did not hold."""
    parser = argparse.ArgumentParser(description="Mixed traffic with random faults.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.seconds:g} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = None if why_not() else Namespace(folder)
        soak = Soak(folder, arguments.seed, network)
        try:
            broken = soak.run(arguments.seconds)
        finally:
            soak.close()
            if network:
                network.close()
    for text in broken:
        print("BROKEN:", text)
    print("all invariants hold" if not broken else f"{len(broken)} do not hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
