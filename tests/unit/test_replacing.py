"""How services and pools take the place of others: real processes, some of which end at once."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import select
import signal
import socket
import time
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Iterator, List, Optional, Set, Tuple

import pytest

from tests.conftest import StartServer
from tests.support import processes
from tests.support.services import letter, say
from tests.support.timing import SLOWNESS, wait_until
from vsock_proxy.config.allowlist import Allowlist, Entry
from vsock_proxy.endpoint.addresses import Address, make_address
from vsock_proxy.endpoint.policy import make_policy
from vsock_proxy.errors import UnavailableError
from vsock_proxy.observing.scoreboard import DRAINS
from vsock_proxy.observing.untold import Untold
from vsock_proxy.observing.vitals import Vitals
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Signals
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.passed import Passed
from vsock_proxy.serving.worker import Duty, Worker
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings
from vsock_proxy.supervision import fleet
from vsock_proxy.supervision.children import Children, Respawning
from vsock_proxy.supervision.fleet import Fleet
from vsock_proxy.supervision.judging import Judged
from vsock_proxy.supervision.pool import Means, Pool
from vsock_proxy.supervision.timers import Timers

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

ONE, TWO, THREE = range(8001, 8004)
HERE, THERE = "192.0.2.1", "192.0.2.2"
ADDRESSES = tuple(make_address(socket.AF_INET, (host, 443)) for host in (HERE, THERE))


def permitting(*hosts: str) -> Allowlist:
    return Allowlist(
        "allowlist.yaml", tuple(Entry(443, network=ip_network(host)) for host in hosts)
    )


NOTHING = permitting()


class Work:
    """What a worker does here: it says that it waits for clients, and ends when it is told to.

    fails: the services whose workers end before that.
    """

    def __init__(self, signals: Signals) -> None:
        self.fails: Set[int] = set()
        self._signals = signals

    def run(self, duty: Duty, number: int, name: Callable[[], None]) -> None:
        if any(int(route.name) in self.fails for route in duty.routes):
            return
        slot = duty.board.claim(number, os.getpid())
        duty.alarm.tell_serving()
        while signal.SIGTERM not in self._signals.take():
            select.select([self._signals.reader], [], [])
        slot[DRAINS] = True


class Master:
    """As much of one as a fleet needs."""

    def __init__(self, signals: Signals, folder: Path, worker: Optional[Worker] = None) -> None:
        """worker: what workers do; None: work."""
        self._path = str(folder / "v")
        self._timers = Timers()
        self._children = Children(signals, lambda: None, lambda pid, status: None)
        self.work = Work(signals)
        self._alarms = os.pipe()
        log = SimpleNamespace(untold=Untold(), name=lambda *_: None)
        means = Means(
            self._children,
            self._timers,
            worker or self.work,  # type: ignore[arg-type]
            log,  # type: ignore[arg-type]
            self._alarms[1],
            itertools.count(1),
            Respawning(self._timers, Vitals()),
            True,
            lambda kept: [],
            self._start_missing,
        )
        self.fleet = Fleet(1, 10.0, Passed(()), means)

    def serve(self, *services: ServiceSettings, addresses: Tuple[Address, ...] = ADDRESSES) -> None:
        """Let these be served, and start their workers."""
        self.put_into_force(NOTHING, *services, addresses=addresses)
        self._start_missing()

    def put_into_force(
        self,
        allowlist: Allowlist,
        *services: ServiceSettings,
        addresses: Tuple[Address, ...] = ADDRESSES,
    ) -> None:
        self.fleet.put_into_force(
            [Judged(one, make_policy(one, allowlist), addresses) for one in services]
        )

    def service(
        self,
        port: int,
        workers: Optional[int] = 1,
        idle_timeout: float = 0.0,
        host: str = "vsock:16",
        there: int = 443,
    ) -> ServiceSettings:
        """there: the endpoint's port."""
        options = ServiceOptions(uds_path=self._path, idle_timeout=idle_timeout)
        return ServiceSettings(port, Endpoint(host, there), options, workers)

    def run_until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            self._children.reap()
            self._timers.look(time.monotonic())
            self.fleet.look()
            return condition()

        wait_until(holds, what)

    def pids(self, port: int) -> List[int]:
        """Those of the workers that accept at a port and are in force or were."""
        return [row.pid for pool in self.pools(port) for row in pool.board.rows() if row.pid]

    def pools(self, port: int) -> List[Pool]:
        return [
            pool
            for pool in self.fleet.all_pools
            if port in (one.settings.local_port for one in pool.composition.services)
        ]

    def end(self) -> None:
        self.fleet.drain()
        self.run_until(lambda: self.fleet.running == 0, "all have ended")
        for end in self._alarms:
            os.close(end)

    def _start_missing(self) -> None:
        self.fleet.start_missing()


@pytest.fixture
def master(signals: Signals, tmp_path: Path) -> Iterator[Master]:
    made = Master(signals, tmp_path)
    yield made
    made.end()


def serving(master: Master, *services: ServiceSettings) -> None:
    """Let these be served, and wait until they are."""
    master.serve(*services)
    master.run_until(lambda: master.fleet.serves, "all serve")


def ended(caplog: pytest.LogCaptureFixture, port: int) -> int:
    """How often the worker of that service has ended; alone it is not called by it."""
    names = f"worker {port}/1 ended", "worker 1 ended"
    return sum(message.startswith(names) for message in caplog.messages)


def test_a_pool_whose_workers_end_at_once_keeps_no_other_from_its_place(
    master: Master, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    serving(master, master.service(ONE), master.service(TWO))
    (good,), (bad,) = master.pids(ONE), master.pids(TWO)
    master.work.fails = {TWO}
    master.serve(*(master.service(port, idle_timeout=900) for port in (ONE, TWO)))
    master.run_until(lambda: len(master.pools(ONE)) == 1, "the old pool has ended")
    assert not processes.is_alive(good)
    master.run_until(lambda: ended(caplog, TWO) >= 3, "the new one ends again and again")
    # Somebody has to serve those who come there.
    assert processes.is_alive(bad)
    master.work.fails = set()
    master.run_until(lambda: len(master.pools(TWO)) == 1, "the other old pool has ended")
    assert not processes.is_alive(bad)
    assert master.fleet.serves


def test_a_pool_that_several_replace_retires_once_all_of_them_serve(
    master: Master, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    serving(master, master.service(ONE, None), master.service(TWO, None))
    (old,) = master.pids(ONE)
    master.work.fails = {TWO}
    master.serve(master.service(ONE), master.service(TWO))
    master.run_until(lambda: ended(caplog, TWO) >= 3, "one of them ends again and again")
    assert master.pids(ONE)[0] != old
    assert processes.is_alive(old)
    master.work.fails = set()
    master.run_until(lambda: len(master.pools(TWO)) == 1, "the old pool has ended")


def test_a_removed_service_closes_though_other_workers_end_at_once(
    master: Master, tmp_path: Path
) -> None:
    serving(master, master.service(ONE), master.service(TWO), master.service(THREE))
    master.work.fails = {TWO}
    master.serve(master.service(ONE), master.service(TWO, idle_timeout=900))
    master.run_until(lambda: not (tmp_path / f"v_{THREE}").exists(), "it is closed")
    assert not master.fleet.serves
    assert len(master.pids(TWO)) == 1


def test_what_a_pool_accepts_from_that_has_no_successor_yet_stays_open(
    master: Master, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    serving(master, master.service(ONE, None), master.service(TWO, None))
    master.work.fails = {ONE}
    master.serve(master.service(ONE))
    master.run_until(lambda: ended(caplog, ONE) >= 3, "its workers end again and again")
    assert (tmp_path / f"v_{TWO}").exists()
    master.work.fails = set()
    master.run_until(lambda: not (tmp_path / f"v_{TWO}").exists(), "it is closed")


def test_a_reload_after_one_whose_workers_end_at_once_replaces_both(
    master: Master, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    serving(master, master.service(ONE))
    (old,) = master.pids(ONE)
    master.work.fails = {ONE}
    master.serve(master.service(ONE, idle_timeout=900))
    master.run_until(lambda: ended(caplog, ONE) >= 3, "its workers end again and again")
    master.work.fails = set()
    serving(master, master.service(ONE, idle_timeout=901))
    master.run_until(lambda: len(master.pools(ONE)) == 1, "the old pools have ended")
    assert not processes.is_alive(old)
    assert len(master.pids(ONE)) == 1


def test_a_worker_is_to_close_what_belongs_to_other_services(master: Master) -> None:
    serving(master, *map(master.service, (ONE, TWO, THREE)))
    services = master.fleet.services
    listening = [service.listener.sock.fileno() for service in services]
    assert sorted(master.fleet.foreign_to(services[:1])) == sorted(listening[1:])
    assert master.fleet.foreign_to(services[1:]) == listening[:1]


@contextlib.contextmanager
def room_for_files(count: int) -> Iterator[None]:
    """Let this process open this number of files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        # All numbers up to the highest are in use then.
        highest = max(processes.descriptors(os.getpid()))
        number = -1
        while number <= highest:
            number = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1 + count, before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        yield


# A listener has one descriptor, and the table of a name two.
@pytest.mark.parametrize("room", range(6))
def test_a_change_without_enough_descriptors_changes_and_leaves_nothing(
    master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    kept = master.service(ONE, host="kept.test")
    master.put_into_force(permitting(HERE, THERE), kept)
    services = [kept, *(master.service(port, host="new.test") for port in (TWO, THREE))]
    monkeypatch.setattr(fleet, "ensure_files", lambda services: None)
    before = processes.open_files(os.getpid())
    with room_for_files(room), pytest.raises(UnavailableError) as raised:
        master.put_into_force(permitting(HERE), *services)
    assert os.strerror(errno.EMFILE) in str(raised.value)
    assert "LimitNOFILE=" in str(raised.value)
    assert processes.open_files(os.getpid()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"v_{ONE}"]
    (service,) = master.fleet.services
    assert service.addresses == ADDRESSES
    master.put_into_force(permitting(HERE), *services)
    assert [one.addresses for one in master.fleet.services] == [ADDRESSES[:1], ADDRESSES, ADDRESSES]


@pytest.fixture
def complete(signals: Signals, tmp_path: Path, start_server: StartServer) -> Iterator[Master]:
    """One whose workers do what they do in the program; they end before the servers do."""
    made = Master(signals, tmp_path, Worker(signals, Lifeline(), Untold()))
    yield made
    made.end()


def test_a_client_that_woke_a_worker_that_died_is_served_by_the_new_pool(
    complete: Master, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(listener: Listener) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    server = start_server(letter(b"A"))
    addresses = (make_address(socket.AF_INET, (server.host, server.port)),)
    master = complete
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "accept", die)
        master.serve(master.service(ONE, host=server.host, there=server.port), addresses=addresses)
        wait_until(lambda: waiting(master, 1), "the old worker waits")
    changed = master.service(ONE, host=server.host, there=server.port, idle_timeout=900)
    master.serve(changed, addresses=addresses)
    # Behind the old one, so that this alone is woken.
    wait_until(lambda: waiting(master, 2), "the new worker waits")
    old = master.fleet.all_pools[-1].board.row(1).pid
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / f"v_{ONE}"))
        wait_until(lambda: not processes.is_alive(old), "the old worker has died")
        client.settimeout(2 * SLOWNESS)
        master.run_until(lambda: len(master.pools(ONE)) == 1, "it is buried")
        assert say(client) == b"A"


def waiting(master: Master, count: int) -> bool:
    """Whether this number of workers wait for clients."""
    pids = master.pids(ONE)
    return len(pids) == count and all(processes.state(pid) == "S" for pid in pids)
