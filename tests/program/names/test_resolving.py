"""An endpoint given by name: what DNS may do to the proxy, which is nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import List

import pytest

from tests.program.names.conftest import Scene
from tests.support import board, processes
from tests.support.clients import answers, end_of, is_refused
from tests.support.comparing import FEWEST_TURNS, Turn, compare
from tests.support.dns import Mood, NameServer
from tests.support.named import HERE, NAME, THERE
from tests.support.namespaces import needs_namespace
from tests.support.program import Proxy, run
from tests.support.servers import exchange
from tests.support.timing import SLOWNESS, at_full_length, wait_until

pytestmark = [
    pytest.mark.hybrid_only,
    needs_namespace,
]

CONNECTIONS = 100
FAULTS = (Mood.NXDOMAIN, Mood.SERVFAIL, Mood.SILENT)


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


def same_processes(proxy: Proxy, pids: List[int]) -> bool:
    return sorted(proxy.children()) == sorted(pids) and not proxy.has_ended()


# A name that stops resolving


@pytest.mark.parametrize("fault", FAULTS, ids=lambda mood: mood.name)
@pytest.mark.alone
def test_a_name_that_stops_resolving_neither_fails_nor_slows_a_connection(
    fault: Mood, scene: Scene, dns: NameServer
) -> None:
    server = scene.server(host=HERE)
    dns.set(NAME, HERE)
    proxy = scene.start(
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
    scene: Scene, dns: NameServer
) -> None:
    dns.set(NAME, HERE)
    proxy = scene.start(scene.server(host=HERE).port, "--resolve-interval", "0.1")
    proxy.log.wait_for(f"{NAME} is {HERE}")
    dns.mood = Mood.NXDOMAIN
    dns.wait_for_questions(20)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(f"info resolver: {NAME} resolves again")
    assert len(proxy.log.matching("warning resolver: ")) == 1


def test_an_answer_without_an_address_changes_nothing(scene: Scene, dns: NameServer) -> None:
    dns.set(NAME, HERE)
    proxy = scene.start(scene.server(host=HERE).port, "--resolve-interval", "0.1")
    assert answers(proxy)
    dns.set(NAME)
    proxy.log.wait_for("does not resolve")
    assert answers(proxy)


def test_a_resolver_that_waits_for_dns_does_not_outlive_the_end(
    scene: Scene, dns: NameServer
) -> None:
    dns.mood = Mood.SILENT
    proxy = scene.start(scene.server(host=HERE).port, "--resolve-interval", "0.1")
    proxy.wait_for_workers(4, "idle")
    pids = proxy.children()
    dns.wait_for_questions(1)
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=0.5) == os.EX_OK
    wait_until(lambda: not any(map(processes.is_alive, pids)), "no process is left", 0.3)


def test_a_resolver_that_dies_is_replaced_and_what_it_knew_stays(
    scene: Scene, dns: NameServer
) -> None:
    dns.set(NAME, HERE)
    proxy = scene.start(scene.server(host=HERE).port)
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
    scene: Scene, dns: NameServer
) -> None:
    here, there = scene.servers(HERE, THERE)
    dns.set(NAME, HERE)
    interval = 0.5 * SLOWNESS
    proxy = scene.start(here.port, "--resolve-interval", str(interval))
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
    scene: Scene, dns: NameServer
) -> None:
    here, _ = scene.servers(HERE, THERE)
    dns.set(NAME, HERE)
    proxy = scene.start(here.port, "--resolve-interval", "1000")
    assert answers(proxy)
    dns.set(NAME, THERE)
    here.close()
    wait_until(lambda: answers(proxy), "a connection to the new address", 5)


# DNS that is down at the start


def test_dns_that_is_down_at_the_start_delays_nothing_but_the_clients(scene: Scene) -> None:
    server = scene.server(host=HERE)
    began = time.monotonic()
    proxy = scene.start(server.port, "--connect-timeout", str(1 * SLOWNESS), workers=2)
    assert time.monotonic() - began < 2 * SLOWNESS
    pids = proxy.children()
    while time.monotonic() < began + at_full_length(20):
        with proxy.connect() as client:
            assert end_of(client) == b""
        proxy.log.wait_for("the endpoint's name does not resolve yet")
    dns = scene.start_name_server()
    dns.set(NAME, HERE)
    wait_until(lambda: answers(proxy), "it serves", 5)
    assert same_processes(proxy, pids)


def test_the_first_clients_wait_for_the_first_answer(scene: Scene) -> None:
    server = scene.server(host=HERE)
    proxy = scene.start(server.port)
    client = proxy.connect()
    client.sendall(b"early")
    proxy.log.wait_for("does not resolve")
    scene.start_name_server().set(NAME, HERE)
    assert client.recv(5) == b"early"
    client.close()


def test_a_client_that_goes_away_before_the_first_answer_frees_its_worker(scene: Scene) -> None:
    server = scene.server(host=HERE)
    proxy = scene.start(server.port, "--connect-timeout", "30", workers=1)
    with proxy.connect():
        proxy.wait_for_workers(1, "connecting [")
    proxy.wait_for_workers(1, "idle", timeout=3)
    scene.start_name_server().set(NAME, HERE)
    wait_until(lambda: answers(proxy), "it serves")
    assert len(server.accepted) == 1


def test_the_listener_is_free_if_the_master_dies_before_the_first_answer(scene: Scene) -> None:
    port = scene.server(host=HERE).port
    proxy = scene.start(port, "--connect-timeout", str(4 * SLOWNESS), workers=1)
    with proxy.connect() as client:
        (worker,) = proxy.wait_for_workers(1, "connecting [")
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: is_refused(proxy), "the listener is free", 1)
        assert end_of(client) == b""
    wait_until(lambda: not processes.is_alive(worker), "it ends with its client", 2)


@pytest.mark.parametrize("to_all", [False, True], ids=["to the master", "to all processes"])
def test_a_client_that_waits_for_dns_is_served_though_sigterm_comes(
    to_all: bool, scene: Scene
) -> None:
    server = scene.server(host=HERE)
    proxy = scene.start(server.port)
    with proxy.connect() as client:
        client.sendall(b"early")
        wait_until(lambda: "connecting" in board.states(proxy), "it waits")
        for pid in (*(proxy.children() if to_all else ()), proxy.pid):
            os.kill(pid, signal.SIGTERM)
        proxy.log.wait_for("no new connections")
        scene.start_name_server().set(NAME, HERE)
        assert client.recv(5) == b"early"
    assert proxy.wait(timeout=2) == os.EX_OK


# A zone


def test_a_zone_whose_interface_was_made_again_is_served_again(scene: Scene) -> None:
    def make_interface() -> None:
        scene.network.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth2")
        scene.network.run("ip", "link", "set", "eth1", "up")
        scene.network.run("ip", "address", "add", "fe80::1/64", "dev", "eth1", "nodad")

    make_interface()
    server = scene.server(host="::")
    proxy = scene.start(server.port, address="fe80::1%eth1")
    assert answers(proxy)
    scene.network.run("ip", "link", "delete", "eth1")
    make_interface()
    wait_until(lambda: answers(proxy), "a connection over the new interface")


# Connecting


def test_the_program_runs_where_there_is_no_dns_at_all(tmp_path: Path) -> None:
    """The exit code tells that it may be tried again, as an address must be known to judge it."""
    (tmp_path / "a.yaml").write_text("allowlist:\n- {address: 10.0.0.1, port: 443}\n")
    done = run("--config", str(tmp_path / "a.yaml"), "8000", f"{NAME}.invalid", "443")
    assert done.returncode == os.EX_TEMPFAIL
