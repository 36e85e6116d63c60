"""The resolver's process: many names, of which none waits for another."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.support import processes
from tests.support.dns import Mood, NameServer
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.resolving import Resolving, Service
from tests.support.timing import SLOWNESS, let_pass, wait_until
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.endpoint.addresses import AddressTable
from vsock_proxy.endpoint.policy import Policy
from vsock_proxy.endpoint.resolution import Resolution
from vsock_proxy.endpoint.resolver import Lookup, Resolver
from vsock_proxy.process.signals import HANDLED
from vsock_proxy.settings import Endpoint

pytestmark = [
    pytest.mark.hybrid_only,
    needs_namespace,
]

PORT = 443
HERE, THERE = "192.0.2.1", "192.0.2.2"
WELL, OTHER, HANGS = "well.test", "other.test", "hangs.test"
NEVER = 1000.0
NAMES = 25
Start = Callable[..., Resolving]


@pytest.fixture
def dns(dns: NameServer) -> NameServer:
    """One that never answers for one of its names."""
    for name in (WELL, OTHER, HANGS):
        dns.set(name, HERE)
    dns.unanswered.add(HANGS)
    return dns


@pytest.fixture
def start(network: Namespace, dns: NameServer) -> Iterator[Start]:
    """Starts a resolver, for services."""
    resolvers: List[Resolving] = []

    def begin(*services: Service) -> Resolving:
        resolvers.append(Resolving(network, services))
        return resolvers[-1]

    yield begin
    for resolver in resolvers:
        resolver.close()


def names(count: int) -> List[str]:
    return [f"name{number}.test" for number in range(count)]


def test_a_name_that_hangs_delays_no_answer_and_no_refresh_of_another(
    start: Start, dns: NameServer
) -> None:
    began = time.monotonic()
    resolver = start((HANGS, PORT, 0.1), (WELL, PORT, 0.1), (HANGS, 80, 0.1), (OTHER, PORT, 0.1))
    assert resolver.ask("wait 1") == resolver.ask("wait 3") == f"{HERE}:{PORT}"
    for address in (THERE, HERE):
        dns.set(WELL, address)
        wait_until(lambda: resolver.ask("show 1") == f"{address}:{PORT}", "it is refreshed")  # noqa: B023
    assert resolver.ask("show 0") == resolver.ask("show 2") == ""
    # Otherwise the name did not hang while this was seen.
    assert time.monotonic() - began < 30
    assert dns.asked[HANGS] <= 4


def test_a_name_that_begins_to_hang_keeps_its_addresses(start: Start, dns: NameServer) -> None:
    resolver = start((WELL, PORT, 0.1), (OTHER, PORT, 0.1))
    resolver.ask("wait 0")
    dns.unanswered.add(WELL)
    dns.set(OTHER, THERE)
    wait_until(lambda: resolver.ask("show 1") == f"{THERE}:{PORT}", "the other is refreshed")
    assert resolver.ask("show 0") == f"{HERE}:{PORT}"


def test_services_that_are_led_to_one_endpoint_share_a_lookup(
    start: Start, dns: NameServer
) -> None:
    resolver = start((WELL, PORT, NEVER), (WELL, PORT, 50.0), (WELL, PORT, NEVER))
    for number in range(3):
        assert resolver.ask(f"wait {number}") == f"{HERE}:{PORT}"
    # Of either family.
    assert dns.asked[WELL] == 2
    dns.set(WELL, THERE)
    resolver.ask("nudge 2")
    for number in range(3):
        wait_until(
            lambda: resolver.ask(f"show {number}") == f"{THERE}:{PORT}",  # noqa: B023
            "all have the new address",
        )
    assert dns.asked[WELL] == 4
    assert len(resolver.log.wait_for(f"{WELL} is {HERE}")) == 1


def test_a_nudge_makes_one_name_be_looked_up_and_no_other(start: Start, dns: NameServer) -> None:
    resolver = start((WELL, PORT, NEVER), (OTHER, PORT, NEVER))
    resolver.ask("wait 0")
    resolver.ask("wait 1")
    dns.set(WELL, THERE)
    resolver.ask("nudge 0")
    wait_until(lambda: resolver.ask("show 0") == f"{THERE}:{PORT}", "it was looked up")
    assert dns.asked[OTHER] == 2


@pytest.mark.parametrize(
    ("services", "title"),
    [
        ([(WELL, PORT)], f"resolver {WELL}"),
        ([(WELL, PORT), (WELL, 80), (WELL, PORT)], f"resolver {WELL}"),
        ([(WELL, PORT), (OTHER, PORT), (HANGS, PORT), (WELL, 80)], "resolver, 3 names"),
    ],
)
def test_its_title_has_the_name_or_how_many_there_are(
    start: Start, services: List[tuple[str, int]], title: str
) -> None:
    resolver = start(*((host, port, NEVER) for host, port in services))
    wait_until(lambda: processes.title(resolver.pid) == f"vsock-proxy: {title}", "it is called so")


def threads_switches(pid: int) -> int:
    """How often any thread of a process gave up the processor of itself."""
    return sum(
        int(processes.field(status, "voluntary_ctxt_switches"))
        for status in Path(f"/proc/{pid}/task").glob("*/status")
    )


def test_between_lookups_no_thread_wakes(start: Start, dns: NameServer) -> None:
    for name in names(NAMES):
        dns.set(name, HERE)
    resolver = start(*((name, PORT, NEVER) for name in names(NAMES)))
    for number in range(NAMES):
        resolver.ask(f"wait {number}")
    pid = resolver.pid
    assert len(os.listdir(f"/proc/{pid}/task")) == NAMES + 1

    def settled() -> bool:
        before = threads_switches(pid)
        let_pass(0.5, why="a thread that does not sleep would run meanwhile")
        return threads_switches(pid) == before

    wait_until(settled, "all sleep")
    before = threads_switches(pid)
    let_pass(1.5, why="no thread may run meanwhile")
    assert threads_switches(pid) == before


@pytest.mark.alone
def test_a_name_more_costs_a_tenth_of_a_process_more(start: Start, dns: NameServer) -> None:
    anonymous = []
    for count in (1, NAMES):
        resolver = start(*((name, PORT, NEVER) for name in names(count)))
        for number, name in enumerate(names(count)):
            dns.set(name, HERE)
            resolver.ask(f"nudge {number}")
            resolver.ask(f"wait {number}")
        anonymous.append(processes.anonymous_kib(resolver.pid))
    assert (anonymous[1] - anonymous[0]) / (NAMES - 1) < 120, anonymous


def test_when_the_master_is_gone_it_ends_at_once_though_names_hang(start: Start) -> None:
    resolver = start((HANGS, PORT, NEVER), (WELL, PORT, NEVER), (HANGS, 80, NEVER))
    resolver.ask("wait 1")
    pid = resolver.pid
    resolver.kill_master()
    wait_until(lambda: not processes.is_alive(pid), "it is gone", 2)


def test_signals_that_all_processes_get_change_nothing(start: Start, dns: NameServer) -> None:
    resolver = start((WELL, PORT, 0.1), (OTHER, PORT, 0.1), (HANGS, PORT, 0.1))
    resolver.ask("wait 1")
    pid = resolver.pid
    for number in (*HANDLED, signal.SIGUSR2, signal.SIGALRM) * 20:
        os.kill(pid, number)
    dns.set(OTHER, THERE)
    wait_until(lambda: resolver.ask("show 1") == f"{THERE}:{PORT}", "it is refreshed")
    assert processes.is_alive(pid)


def test_killed_at_any_moment_it_leaves_whole_tables_to_its_successor(
    start: Start, dns: NameServer
) -> None:
    # Each answer is one of these, of different lengths.
    lists = [(HERE,), (THERE, HERE), ("198.51.100.1", "198.51.100.2", "198.51.100.3")]
    whole = {" ".join(f"{address}:{PORT}" for address in addresses) for addresses in lists}
    count = 5
    for name in names(count):
        dns.set(name, *lists[0])
    resolver = start(*((name, PORT, 0.1) for name in names(count)))
    for number in range(count):
        resolver.ask(f"wait {number}")
    for turn in range(1, int(30 / SLOWNESS)):
        for number, name in enumerate(names(count)):
            dns.set(name, *lists[turn % 3])
            resolver.ask(f"nudge {number}")
        seen = {resolver.ask(f"show {number}") for number in range(count)}
        assert seen <= whole
        resolver.ask("replace")
    last = " ".join(f"{address}:{PORT}" for address in lists[0])
    for number, name in enumerate(names(count)):
        dns.set(name, *lists[0])
        wait_until(
            lambda: resolver.ask(f"show {number}") == last,  # noqa: B023
            "the last resolver has published",
        )


def test_lines_of_many_names_at_once_are_whole(start: Start, dns: NameServer) -> None:
    dns.mood = Mood.SERVFAIL
    resolver = start(*((name, PORT, 0.1) for name in names(NAMES)))
    head, tail = r"^\S+Z warning resolver: name\d+\.test does", "clients wait until it does$"
    resolver.log.wait_for(f"{head} not resolve: [^;]+; {tail}", count=NAMES)
    dns.mood = Mood.ANSWERING
    for name in names(NAMES):
        dns.set(name, HERE)
    found = rf"^\S+Z info resolver: name\d+\.test is {HERE}$"
    resolver.log.wait_for(found, count=NAMES)
    resolver.log.wait_for(r"^\S+Z info resolver: name\d+\.test resolves again$", count=NAMES)
    assert len(resolver.log.lines) == 3 * NAMES


# Without a network


def lookups(*hosts: str) -> List[Lookup]:
    nothing = Allowlist("list", ())
    return [
        Lookup(
            AddressTable(PORT),
            Policy(Endpoint(host, PORT), socket.AF_UNSPEC, True, nothing),
            NEVER,
        )
        for host in hosts
    ]


@pytest.fixture
def threads_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    threading.stack_size(0)


def test_threads_that_cannot_be_started_are_said_and_tried_again(
    threads_as_before: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lifeline, writer = os.pipe()
    tries: List[float] = []

    def start(thread: threading.Thread) -> None:
        tries.append(time.monotonic())
        if len(tries) == 4:
            os.close(writer)
        if len(tries) != 1:
            raise RuntimeError("can't start new thread")

    threads_as_before.setattr(threading.Thread, "start", start)
    Resolver(lookups(WELL, OTHER, HANGS)).run(lifeline)
    os.close(lifeline)
    # The first has one, and the second was tried three times.
    assert len(tries) == 4
    assert tries[-1] - tries[1] > 1.5
    assert [record.getMessage() for record in caplog.records] == [
        "cannot start a thread for each name: 2 of 3 are missing; raise the limit of processes "
        "with TasksMax= in the unit or ulimit -u; trying again every second"
    ]


def test_a_fault_in_one_thread_ends_the_process_for_another_to_start(
    threads_as_before: pytest.MonkeyPatch,
) -> None:
    def fail(resolution: Resolution, lifeline: int) -> None:
        raise AssertionError

    threads_as_before.setattr(Resolution, "run", fail)
    lifeline, writer = os.pipe()
    pid = os.fork()
    if not pid:
        Resolver(lookups(WELL, OTHER)).run(lifeline)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == os.EX_SOFTWARE
    os.close(lifeline)
    os.close(writer)
