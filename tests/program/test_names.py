"""An endpoint given by name: what DNS may do to the proxy, which is nothing.

Each test has a network of its own with its own name server, so that it can say what a name is,
that there is none, or nothing at all.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import answers, end_of
from tests.support.comparing import FEWEST_TURNS, Turn, compare
from tests.support.dns import Mood, NameServer
from tests.support.namespaces import Namespace, why_not
from tests.support.program import Proxy, run
from tests.support.servers import Server, exchange, silent
from tests.support.systemd import NotifySocket
from tests.support.timing import AT_ONCE, SLOWNESS, at_full_length, is_within, wait_until
from vsock_proxy.config.hostnames import parse_address

pytestmark = [
    pytest.mark.hybrid_only,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be"),
]

NAME = "endpoint.test"
HERE, THERE = "127.0.0.2", "127.0.0.3"
CONNECTIONS = 100
FAULTS = (Mood.NXDOMAIN, Mood.SERVFAIL, Mood.SILENT)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Namespace]:
    namespace = Namespace(tmp_path)
    yield namespace
    namespace.close()


@pytest.fixture
def start_name_server(network: Namespace) -> Iterator[Callable[[], NameServer]]:
    name_servers: List[NameServer] = []

    def start() -> NameServer:
        name_servers.append(network.call(NameServer))
        return name_servers[-1]

    yield start
    for name_server in name_servers:
        name_server.close()


@pytest.fixture
def dns(start_name_server: Callable[[], NameServer]) -> NameServer:
    return start_name_server()


@pytest.fixture
def start_named(network: Namespace, start_proxy: StartProxy) -> StartProxy:
    """Starts the proxy inside the network, for the name and a port."""

    def start(port: int, *options: str, **process: object) -> Proxy:
        return start_proxy((NAME, port), *options, wrapper=network.wrapper, **process)

    return start


def times(proxy: Proxy) -> List[float]:
    """How long connections take, each with a byte there and back."""
    found = []
    for _ in range(CONNECTIONS):
        began = time.perf_counter()
        with proxy.connect() as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        found.append(time.perf_counter() - began)
    return found


def times_after_a_question(proxy: Proxy, dns: NameServer) -> List[float]:
    """What they take once the name server has been asked in the mood that it is in."""
    dns.wait_for_questions(1)
    return times(proxy)


def states(proxy: Proxy) -> List[str]:
    """What the workers do."""
    return [row.state for row in board.ask(proxy)]


def same_processes(proxy: Proxy, pids: List[int]) -> bool:
    return sorted(proxy.children()) == sorted(pids) and not proxy.has_ended()


# A name that stops resolving


@pytest.mark.parametrize("fault", FAULTS, ids=lambda mood: mood.name)
@pytest.mark.alone
def test_a_name_that_stops_resolving_neither_fails_nor_slows_a_connection(
    fault: Mood, dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    server = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(
        server.port, "--resolve-interval", "0.1", "--log-level", "warning", ready=False
    )
    wait_until(lambda: len(proxy.workers("idle")) == 4, "all are there")
    times(proxy)
    pids = proxy.children()
    dns.mood = fault
    proxy.log.wait_for("does not resolve: .*; keeping the 1 known before")
    turns: List[Turn] = []
    for _ in range(FEWEST_TURNS):
        in_trouble = times_after_a_question(proxy, dns)
        dns.mood = Mood.ANSWERING
        turns.append((times_after_a_question(proxy, dns), in_trouble))
        dns.mood = fault
    for percent in (99, 50):
        found = compare(turns, 1.2, percent)
        assert not found.is_slower, found
    assert same_processes(proxy, pids)


def test_a_trouble_with_dns_is_logged_when_it_begins_and_when_it_ends(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    dns.set(NAME, HERE)
    proxy = start_named(start_inside(host=HERE).port, "--resolve-interval", "0.1")
    proxy.log.wait_for(f"{NAME} is {HERE}")
    dns.mood = Mood.NXDOMAIN
    dns.wait_for_questions(20)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(f"info resolver: {NAME} resolves again")
    assert len(proxy.log.matching("warning resolver: ")) == 1


def test_an_answer_without_an_address_changes_nothing(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    dns.set(NAME, HERE)
    proxy = start_named(start_inside(host=HERE).port, "--resolve-interval", "0.1")
    assert answers(proxy)
    dns.set(NAME)
    proxy.log.wait_for("does not resolve")
    assert answers(proxy)


def test_a_resolver_that_waits_for_dns_does_not_outlive_the_end(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    dns.mood = Mood.SILENT
    proxy = start_named(start_inside(host=HERE).port, "--resolve-interval", "0.1")
    proxy.wait_for_workers(4, "idle")
    pids = proxy.children()
    dns.wait_for_questions(1)
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=0.5) == os.EX_OK
    wait_until(lambda: not any(map(processes.is_alive, pids)), "no process is left", 0.3)


def test_a_resolver_that_dies_is_replaced_and_what_it_knew_stays(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    dns.set(NAME, HERE)
    proxy = start_named(start_inside(host=HERE).port)
    assert answers(proxy)
    title = f"vsock-proxy: resolver {NAME}"
    (old,) = [pid for pid in proxy.children() if processes.title(pid) == title]
    dns.mood = Mood.SILENT
    os.kill(old, signal.SIGKILL)
    proxy.log.wait_for("resolver ended, signal 9 .Killed.; starting another")
    assert answers(proxy)
    wait_until(lambda: proxy.titles().count(title) == 1, "another resolver")
    assert old not in proxy.children()


# A name that moves


@pytest.mark.alone
def test_a_name_that_moves_takes_new_connections_and_leaves_live_ones(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    interval = 0.5 * SLOWNESS
    proxy = start_named(here.port, "--resolve-interval", str(interval))
    with proxy.connect() as live:
        assert exchange(live, b"before") == b"before"
        dns.set(NAME, THERE)
        moved = time.monotonic()
        wait_until(lambda: answers(proxy) and there.accepted, "a connection to the new address")
        assert time.monotonic() - moved < 2 * interval
        old = len(here.accepted)
        assert all(answers(proxy) for _ in range(20))
        assert len(here.accepted) == old
        assert exchange(live, b"after") == b"after"


def test_connections_that_fail_make_the_resolver_look_at_once(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    here = start_inside(host=HERE)
    start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, "--resolve-interval", "1000")
    assert answers(proxy)
    dns.set(NAME, THERE)
    here.close()
    wait_until(lambda: answers(proxy), "a connection to the new address", 5)


# DNS that is down at the start


def test_dns_that_is_down_at_the_start_delays_nothing_but_the_clients(
    start_name_server: Callable[[], NameServer],
    start_inside: StartServer,
    start_named: StartProxy,
) -> None:
    server = start_inside(host=HERE)
    began = time.monotonic()
    proxy = start_named(server.port, "--connect-timeout", str(1 * SLOWNESS), workers=2)
    assert time.monotonic() - began < 2 * SLOWNESS
    pids = proxy.children()
    while time.monotonic() < began + at_full_length(20):
        with proxy.connect() as client:
            assert end_of(client) == b""
        proxy.log.wait_for("the endpoint's name does not resolve yet")
    dns = start_name_server()
    dns.set(NAME, HERE)
    wait_until(lambda: answers(proxy), "it serves", 5)
    assert same_processes(proxy, pids)


def test_the_first_clients_wait_for_the_first_answer(
    start_name_server: Callable[[], NameServer],
    start_inside: StartServer,
    start_named: StartProxy,
) -> None:
    server = start_inside(host=HERE)
    proxy = start_named(server.port)
    client = proxy.connect()
    client.sendall(b"early")
    proxy.log.wait_for("does not resolve")
    start_name_server().set(NAME, HERE)
    assert client.recv(5) == b"early"
    client.close()


def test_a_client_that_goes_away_before_the_first_answer_frees_its_worker(
    start_name_server: Callable[[], NameServer],
    start_inside: StartServer,
    start_named: StartProxy,
) -> None:
    server = start_inside(host=HERE)
    proxy = start_named(server.port, "--connect-timeout", "30", workers=1)
    with proxy.connect():
        proxy.wait_for_workers(1, "connecting [")
    proxy.wait_for_workers(1, "idle", timeout=3)
    start_name_server().set(NAME, HERE)
    wait_until(lambda: answers(proxy), "it serves")
    assert len(server.accepted) == 1


def test_the_listener_is_free_if_the_master_dies_before_the_first_answer(
    start_inside: StartServer, start_named: StartProxy
) -> None:
    port = start_inside(host=HERE).port
    proxy = start_named(port, "--connect-timeout", str(4 * SLOWNESS), workers=1)
    with proxy.connect() as client:
        (worker,) = proxy.wait_for_workers(1, "connecting [")
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: is_refused(proxy), "the listener is free", 1)
        assert end_of(client) == b""
    wait_until(lambda: not processes.is_alive(worker), "it ends with its client", 2)


def is_refused(proxy: Proxy) -> bool:
    try:
        proxy.connect().close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


@pytest.mark.parametrize("to_all", [False, True], ids=["to the master", "to all processes"])
def test_a_client_that_waits_for_dns_is_served_though_sigterm_comes(
    start_name_server: Callable[[], NameServer],
    start_inside: StartServer,
    start_named: StartProxy,
    to_all: bool,
) -> None:
    server = start_inside(host=HERE)
    proxy = start_named(server.port)
    with proxy.connect() as client:
        client.sendall(b"early")
        wait_until(lambda: "connecting" in states(proxy), "it waits")
        for pid in (*(proxy.children() if to_all else ()), proxy.pid):
            os.kill(pid, signal.SIGTERM)
        proxy.log.wait_for("no new connections")
        start_name_server().set(NAME, HERE)
        assert client.recv(5) == b"early"
    assert proxy.wait(timeout=2) == os.EX_OK


# What DNS may not say

METADATA = {
    "IPv4": "169.254.169.254",
    "link-local": "169.254.0.1",
    "IPv4-mapped": "::ffff:169.254.169.254",
    "NAT64": "64:ff9b::a9fe:a9fe",
    "6to4": "2002:a9fe:a9fe::1",
    "IPv6": "fd00:ec2::254",
    "EKS Pod Identity": "fd00:ec2::23",
    "Alibaba Cloud": "100.100.100.200",
    "IPv6 link-local": "fe80::1",
}


@pytest.mark.parametrize("address", METADATA.values(), ids=METADATA.keys())
def test_a_poisoned_name_does_not_lead_to_the_instance_metadata(
    address: str,
    network: Namespace,
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
) -> None:
    network.add_address("169.254.169.254/32")
    network.add_address("fd00:ec2::254/128")
    metadata = start_inside(host="169.254.169.254")
    metadata_6 = start_inside(host="fd00:ec2::254", port=metadata.port)
    dns.set(NAME, address)
    proxy = start_named(metadata.port, "--connect-timeout", "0.3")
    line = proxy.log.wait_for("resolves only to addresses that are not permitted: ")[0]
    assert line.split("permitted: ")[1].split(";")[0] == str(parse_address(address))
    assert not answers(proxy)
    assert not metadata.accepted
    assert not metadata_6.accepted


def test_of_a_poisoned_answer_the_other_addresses_are_used(
    network: Namespace, dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    network.add_address("169.254.169.254/32")
    metadata = start_inside(host="169.254.169.254")
    server = start_inside(host=HERE, port=metadata.port)
    dns.set(NAME, "169.254.169.254", HERE)
    proxy = start_named(server.port)
    assert all(answers(proxy) for _ in range(8))
    assert len(server.accepted) == 8
    assert not metadata.accepted


def test_a_name_poisoned_later_stays_what_it_was(
    network: Namespace, dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    network.add_address("169.254.169.254/32")
    metadata = start_inside(host="169.254.169.254")
    start_inside(host=HERE, port=metadata.port)
    dns.set(NAME, HERE)
    proxy = start_named(metadata.port, "--resolve-interval", "0.1")
    assert answers(proxy)
    dns.set(NAME, "169.254.169.254")
    proxy.log.wait_for("not permitted: 169.254.169.254; keeping the 1 known before")
    assert all(answers(proxy) for _ in range(8))
    assert not metadata.accepted


def test_the_metadata_address_is_served_to_who_names_it(
    network: Namespace, start_inside: StartServer, start_proxy: StartProxy
) -> None:
    network.add_address("169.254.169.254/32")
    metadata = start_inside(host="169.254.169.254")
    assert answers(start_proxy(metadata, wrapper=network.wrapper))


def test_an_endpoint_permitted_by_its_address_is_connected_to_only_there(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, THERE, HERE)
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", "0.1", config=config)
    assert all(answers(proxy) for _ in range(8))
    dns.set(NAME, THERE)
    proxy.log.wait_for(f"not permitted: {THERE}; keeping the 1 known before")
    assert all(answers(proxy) for _ in range(8))
    assert not there.accepted


def test_a_network_of_the_allowlist_permits_the_addresses_within_it(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    outside = start_inside(host="127.0.1.1", port=here.port)
    dns.set(NAME, "127.0.1.1", HERE)
    proxy = start_named(here.port, config=write_allowlist(("127.0.0.0/24", here.port)))
    assert all(answers(proxy) for _ in range(8))
    assert not outside.accepted


def test_a_name_with_only_forbidden_addresses_is_exit_code_78(
    network: Namespace,
    dns: NameServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    dns.set(NAME, "127.0.1.1")
    proxy = start_named(443, config=write_allowlist(("127.0.0.0/24", 443)), ready=False)
    assert proxy.wait() == os.EX_CONFIG
    proxy.log.wait_for(f"^vsock-proxy: {NAME}:443 is not permitted by ")


def test_a_wildcard_permits_the_names_below_it(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    server = start_inside(host=HERE)
    dns.set(NAME, HERE)
    assert answers(start_named(server.port, config=write_allowlist(("*.test", server.port))))


@pytest.mark.parametrize("wildcard", ["*.endpoint.test", "*.point.test", "*.other"])
def test_a_wildcard_permits_neither_the_bare_domain_nor_other_names(
    wildcard: str,
    dns: NameServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    dns.set(NAME, HERE)
    proxy = start_named(443, config=write_allowlist((wildcard, 443)), ready=False)
    assert proxy.wait() == os.EX_CONFIG


# Reload


def test_a_reload_that_forbids_the_address_ends_no_live_connection(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    server = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(server.port, config=write_allowlist((HERE, server.port)))
    with proxy.connect() as live:
        assert exchange(live, b"before") == b"before"
        write_allowlist((THERE, server.port))
        proxy.send(signal.SIGHUP)
        proxy.log.wait_for(f"error master: {NAME}:{server.port} is not permitted")
        assert exchange(live, b"after") == b"after"
    assert proxy.wait(timeout=2) == os.EX_CONFIG


def test_a_reload_that_permits_other_addresses_leads_new_clients_there(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE, THERE)
    config = write_allowlist((HERE, here.port), (THERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", "1000", config=config)
    with proxy.connect() as live:
        exchange(live, b"x")
        write_allowlist((THERE, here.port))
        proxy.send(signal.SIGHUP)
        wait_until(lambda: answers(proxy) and there.accepted, "a connection to the other address")
        old = len(here.accepted)
        assert all(answers(proxy) for _ in range(8))
        assert len(here.accepted) == old
        assert exchange(live, b"after") == b"after"


def test_a_reload_that_permits_more_addresses_makes_use_of_them(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE, THERE)
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", "1000", config=config)
    assert answers(proxy)
    here.close()
    assert not answers(proxy)
    write_allowlist((HERE, here.port), (THERE, here.port))
    proxy.send(signal.SIGHUP)
    wait_until(lambda: answers(proxy), "a connection to the other address")


def test_after_a_reload_dns_cannot_lead_to_what_the_old_list_permitted(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, THERE)
    config = write_allowlist((HERE, here.port), (THERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", "0.1", config=config)
    assert answers(proxy)
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("allowlist read again")
    dns.set(NAME, HERE)
    proxy.log.wait_for(f"not permitted: {HERE}; keeping the 1 known before")
    assert all(answers(proxy) for _ in range(8))
    assert len(there.accepted) == 9
    assert not here.accepted


def test_a_reload_that_replaces_the_resolver_is_no_trouble_to_warn_of(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    server = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(server.port)
    assert answers(proxy)
    questions = dns.questions
    proxy.send(signal.SIGHUP)
    wait_until(lambda: dns.questions > questions, "the question of the new resolver")
    proxy.log.wait_for("allowlist read again")
    assert answers(proxy)
    assert not proxy.log.matching("warning")


IN_FORCE_UNTIL = "warning master: .* the list from before stays in force until DNS answers$"
IN_FORCE_NOW = "info master: .* it is in force now$"


@pytest.mark.parametrize("noticed", [False, True], ids=["unnoticed", "noticed"])
def test_a_reload_that_permits_the_new_address_of_a_name_leads_there(
    noticed: bool,
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    interval = "0.1" if noticed else "1000"
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", interval, config=config)
    assert answers(proxy)
    dns.set(NAME, THERE)
    if noticed:
        proxy.log.wait_for(f"not permitted: {THERE}")
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy) and there.accepted, "a connection to the new address")
    old = len(here.accepted)
    assert all(answers(proxy) for _ in range(8))
    assert len(here.accepted) == old


def test_a_reload_that_needs_dns_changes_nothing_until_dns_answers(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    assert answers(proxy)
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    assert all(answers(proxy) for _ in range(8))
    assert not there.accepted
    dns.set(NAME, THERE)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy) and there.accepted, "a connection to the new address")


@pytest.mark.parametrize("answer", [HERE, THERE])
def test_a_reload_before_the_first_answer_of_dns_is_judged_by_that(
    answer: str,
    start_name_server: Callable[[], NameServer],
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    proxy = start_named(here.port, config=write_allowlist((NAME, here.port)))
    write_allowlist((HERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    assert not proxy.has_ended()
    start_name_server().set(NAME, answer)
    if answer == HERE:
        wait_until(lambda: answers(proxy), "it serves")
    else:
        assert proxy.wait() == os.EX_CONFIG
        proxy.log.wait_for(f"error master: {NAME}:{here.port} is not permitted by .*; ending")


def test_a_further_reload_takes_the_place_of_one_that_is_not_judged_yet(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    assert answers(proxy)
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    write_allowlist((HERE, here.port))
    questions = dns.questions
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_NOW)
    dns.mood = Mood.ANSWERING
    wait_until(lambda: dns.questions > questions, "the question of the new resolver")
    assert all(answers(proxy) for _ in range(8))


def test_a_bad_file_leaves_a_list_that_is_not_judged_yet_to_be_judged(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, config=config)
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    config.write_text("nonsense")
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("the allowlist stays as it was$")
    dns.mood = Mood.ANSWERING
    assert proxy.wait() == os.EX_CONFIG


def test_a_process_that_dies_before_it_has_judged_leaves_that_to_the_next(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    dns.mood = Mood.SILENT
    title = "vsock-proxy: reload"
    (judge,) = wait_until(
        lambda: [pid for pid in proxy.children() if processes.title(pid) == title], "it is judged"
    )
    os.kill(judge, signal.SIGKILL)
    dns.set(NAME, THERE)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy), "it serves")
    assert not proxy.log.matching("error")


def test_a_list_that_waits_for_dns_is_told_once_and_judged_by_one_process(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    dns.mood = Mood.NXDOMAIN
    config = write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    # What is in the file now is not asked for by any SIGHUP.
    config.unlink()
    dns.wait_for_questions(6)
    assert proxy.titles().count("vsock-proxy: reload") <= 1
    assert len(proxy.log.matching(IN_FORCE_UNTIL)) == 1
    assert len(proxy.log.matching("allowlist")) == 2
    assert answers(proxy)


def test_a_reload_is_over_for_systemd_before_dns_answers(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
    tmp_path: Path,
) -> None:
    systemd = NotifySocket(str(tmp_path / "notify"))
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    environment = {**os.environ, "NOTIFY_SOCKET": systemd.address}
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, config=config, environment=environment)
    systemd.wait_for("^READY=1$")
    dns.mood = Mood.SILENT
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    systemd.wait_for("^RELOADING=1\n")
    systemd.wait_for("^READY=1$")
    assert not proxy.log.matching(IN_FORCE_NOW)
    systemd.close()


# A zone


def test_a_zone_whose_interface_was_made_anew_is_served_again(
    network: Namespace, start_inside: StartServer, start_proxy: StartProxy
) -> None:
    def make_interface() -> None:
        network.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth2")
        network.run("ip", "link", "set", "eth1", "up")
        network.run("ip", "address", "add", "fe80::1/64", "dev", "eth1", "nodad")

    make_interface()
    server = start_inside(host="::")
    proxy = start_proxy(("fe80::1%eth1", server.port), wrapper=network.wrapper)
    assert answers(proxy)
    network.run("ip", "link", "delete", "eth1")
    make_interface()
    wait_until(lambda: answers(proxy), "a connection over the new interface")


# Connecting

HOLE, HOLE_6, BEYOND = "192.0.2.77", "2001:db8::77", "198.51.100.1"


@pytest.fixture
def behind_a_hole(network: Namespace, dns: NameServer, start_inside: StartServer) -> Server:
    """An endpoint with two addresses, of which the preferred one leads nowhere (RFC 6724, 6)."""
    network.add_black_holes(HOLE, HOLE_6)
    network.add_address(f"{BEYOND}/32")
    dns.set(NAME, HOLE_6, BEYOND)
    return start_inside(host=BEYOND)


@pytest.mark.alone
def test_an_address_that_does_not_answer_costs_less_than_400_ms(
    behind_a_hole: Server, start_named: StartProxy
) -> None:
    def be_first() -> float:
        proxy = start_named(behind_a_hole.port)
        proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
        proxy.wait_for_workers(4, "idle")
        took = seconds_until_answered(proxy)
        assert took + 0.01 >= 0.25
        proxy.end()
        return took

    assert is_within(0.4, be_first)


def seconds_until_answered(proxy: Proxy) -> float:
    """How long a client takes, with a byte there and back."""
    with proxy.connect() as client:
        began = time.monotonic()
        assert exchange(client, b"x") == b"x"
        return time.monotonic() - began


REFUSING = tuple(f"198.51.100.{number}" for number in range(2, 6))


@pytest.mark.parametrize("timeout", ["10", "1"])
@pytest.mark.alone
def test_addresses_that_refuse_after_one_that_is_silent_cost_no_time(
    timeout: str,
    network: Namespace,
    behind_a_hole: Server,
    dns: NameServer,
    start_named: StartProxy,
) -> None:
    for address in REFUSING:
        network.add_address(f"{address}/32")
    dns.set(NAME, HOLE_6, *REFUSING, BEYOND)

    def be_first() -> float:
        proxy = start_named(behind_a_hole.port, "--connect-timeout", timeout, workers=1)
        proxy.log.wait_for(f"{NAME} is {HOLE_6}, .*{BEYOND}")
        took = seconds_until_answered(proxy)
        proxy.end()
        return took

    assert is_within(0.4, be_first)


def test_an_address_without_a_free_local_port_is_followed_by_the_next(
    network: Namespace, dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    server = start_inside(silent, host=HERE)
    start_inside(host=THERE, port=server.port)
    dns.set(NAME, HERE, THERE)
    network.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40001")
    proxy = start_named(server.port, "--resolve-interval", "1000")
    proxy.log.wait_for(f"{NAME} is {HERE}, {THERE}")
    with proxy.connect(), proxy.connect():
        server.wait_for_connections(2)
        assert answers(proxy)


def test_the_address_that_worked_last_is_tried_first(
    behind_a_hole: Server, start_named: StartProxy
) -> None:
    proxy = start_named(behind_a_hole.port)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
    assert answers(proxy)

    def try_all() -> float:
        began = time.monotonic()
        assert all(answers(proxy) for _ in range(8))
        return time.monotonic() - began

    assert is_within(0.25, try_all)


def test_a_connection_that_is_being_made_when_sigterm_comes_is_served(
    behind_a_hole: Server, start_named: StartProxy
) -> None:
    proxy = start_named(behind_a_hole.port)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
    with proxy.connect() as client:
        client.sendall(b"x")
        wait_until(lambda: "connecting" in states(proxy), "it connects")
        proxy.send(signal.SIGTERM)
        began = time.monotonic()
        assert client.recv(1) == b"x"
        assert time.monotonic() - began < AT_ONCE * SLOWNESS
    assert proxy.wait(timeout=2) == os.EX_OK


def test_a_worker_stopped_while_it_connects_goes_on_with_the_next_address(
    behind_a_hole: Server, start_named: StartProxy
) -> None:
    proxy = start_named(behind_a_hole.port, workers=1)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
    (worker,) = proxy.wait_for_workers(1, "idle")
    with proxy.connect() as client:
        client.sendall(b"x")
        wait_until(lambda: "connecting" in states(proxy), "it connects")
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: processes.state(worker) == "T", "it is stopped")
        os.kill(worker, signal.SIGCONT)
        assert client.recv(1) == b"x"


def test_no_answer_at_all_is_given_up_after_the_connect_timeout(
    behind_a_hole: Server, dns: NameServer, start_named: StartProxy
) -> None:
    dns.set(NAME, HOLE_6, HOLE)
    proxy = start_named(behind_a_hole.port, "--connect-timeout", "0.6", workers=1)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {HOLE}")

    def seconds_beyond() -> float:
        took = seconds_until_closed(proxy)
        assert took > 0.5
        return took - 0.6

    # Were the time for each of the addresses, it would be twice as long.
    assert is_within(0.4, seconds_beyond)
    line = proxy.log.wait_for("cannot connect to")[0]
    assert f"[{HOLE_6}]:{behind_a_hole.port}: no answer in time" in line
    assert f"{HOLE}:{behind_a_hole.port}: no answer in time" in line


def seconds_until_closed(proxy: Proxy) -> float:
    """How long a client is kept that cannot be served."""
    with proxy.connect() as client:
        began = time.monotonic()
        assert end_of(client) == b""
        return time.monotonic() - began


def test_families_take_turns(
    behind_a_hole: Server, dns: NameServer, start_named: StartProxy
) -> None:
    dns.set(NAME, HOLE_6, "2001:db8::1", "192.0.2.1", BEYOND)
    proxy = start_named(behind_a_hole.port)
    line = proxy.log.wait_for(f"{NAME} is ")[0]
    families = [":" in address for address in line.split(" is ")[1].split(", ")]
    assert families == [True, False, True, False]


@pytest.mark.parametrize("option", ["-4", "-6"])
def test_only_addresses_of_the_family_asked_for_are_used(
    option: str, behind_a_hole: Server, dns: NameServer, start_named: StartProxy
) -> None:
    dns.set(NAME, "2001:db8::1", BEYOND)
    proxy = start_named(behind_a_hole.port, option)
    line = proxy.log.wait_for(f"{NAME} is ")[0]
    assert line.endswith(f" is {BEYOND}" if option == "-4" else " is 2001:db8::1")


def test_a_client_is_closed_at_once_when_all_addresses_refuse(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    server = start_inside(silent, host=HERE)
    server.close()
    dns.set(NAME, HERE, THERE)
    proxy = start_named(server.port, workers=1)
    proxy.log.wait_for(f"{NAME} is ")
    assert is_within(0.2, lambda: seconds_until_closed(proxy))
    line = proxy.log.wait_for("cannot connect to")[0]
    assert f"{HERE}:{server.port}: Connection refused" in line
    assert f"{THERE}:{server.port}: Connection refused" in line
    start_inside(host=THERE, port=server.port)
    assert answers(proxy)


def test_a_refused_address_is_followed_by_the_next_at_once(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    server = start_inside(host=THERE)
    dns.set(NAME, HERE, THERE)

    def be_first() -> float:
        proxy = start_named(server.port, workers=1)
        proxy.log.wait_for(f"{NAME} is ")
        took = seconds_until_answered(proxy)
        proxy.end()
        return took

    assert is_within(0.2, be_first)


def test_the_program_runs_where_there_is_no_dns_at_all(tmp_path: Path) -> None:
    """The exit code tells that it may be tried again, as an address must be known to judge it."""
    (tmp_path / "a.yaml").write_text("allowlist:\n- {address: 10.0.0.1, port: 443}\n")
    done = run("--config", str(tmp_path / "a.yaml"), "8000", f"{NAME}.invalid", "443")
    assert done.returncode == os.EX_TEMPFAIL
