"""A reload of the services: what changes, what stays, and that no client notices."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Set, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import end_of, is_refused
from tests.support.crowd import Crowd, End, answering
from tests.support.namespaces import why_not
from tests.support.program import ID, Proxy, Transport
from tests.support.servers import exchange, silent
from tests.support.services import (
    Service,
    ServicesFile,
    common_pool,
    letter,
    letter_at,
    nothing_came,
    pool_of,
    say,
    service,
)
from tests.support.timing import AT_ONCE, SLOWNESS, wait_until
from tests.support.transports import Hybrid

# The limit of processes does not bind root, and another user cannot read what the tests run: this
# one can. It has no other process, nor has a user of a test that runs at the same time.
USER = 50_000 + os.getpid() % 10_000
LIMITED_USER = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
]
RELOADS = 20
RATE = 100 / SLOWNESS
# How much of it there must have been. An emulated machine, or one that others use, may not keep up.
KEPT_UP = 0.5
# From one reload being in force to the next.
BETWEEN = 0.5 * SLOWNESS
# What came to an old worker before it was told to end is still served by it.
HANDED_OVER = 1.0 * SLOWNESS
READER = "vsock-proxy: reload"


def all_idle(proxy: Proxy, count: int) -> List[int]:
    """The pids of all workers, once this number are there and all are idle."""
    return sorted(
        wait_until(
            lambda: (
                proxy.workers()
                if len(proxy.workers("idle")) == len(proxy.workers()) == count
                else None
            ),
            f"{count} workers, all of them idle",
        )
    )


# What did not change is not touched


def test_a_reload_of_an_unchanged_file_replaces_no_worker(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    proxy = start_services(service(one, server), service(two, server, workers=2), workers=3)
    before = all_idle(proxy, 5)
    with proxy.connect(one) as live:
        assert say(live) == b"A"
        for _ in range(3):
            services_file.reload(proxy)
        assert say(live) == b"A"
    assert all_idle(proxy, 5) == before


@pytest.mark.hybrid_only  # no transport has a part in it
def test_another_order_and_other_words_for_the_same_replace_no_worker(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    first, second = service(one, server), service(two, server, workers=2)
    proxy = start_services(first, second, options=["--connect-timeout", "7"], workers=3)
    before = all_idle(proxy, 5)
    services_file.reload(proxy, second, {**first, "connect_timeout": 7.0})
    assert all_idle(proxy, 5) == before


CHANGES: Dict[str, Callable[[Service], Service]] = {
    "its endpoint": lambda found: {**found, "address": "127.0.0.2"},
    "its options": lambda found: {**found, "idle_timeout": 1000},
    "its workers": lambda found: {**found, "workers": 3},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_a_service_with_its_own_pool_leaves_other_pools_alone(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    change: Callable[[Service], Service],
) -> None:
    shared, changed, other = transport.ports(3)
    server = start_server(letter(b"A"), host="0.0.0.0")
    server.host = "127.0.0.1"
    services = [
        service(shared, server),
        service(changed, server, workers=2),
        service(other, server, workers=2),
    ]
    proxy = start_services(*services, workers=2)
    all_idle(proxy, 6)
    before = {port: pool_of(proxy, port) for port in (changed, other)}
    common = common_pool(proxy)
    services[1] = change(services[1])
    services_file.reload(proxy, *services)
    wait_until(lambda: not set(pool_of(proxy, changed)) & set(before[changed]), "a new pool")
    all_idle(proxy, 4 + int(str(services[1]["workers"])))
    assert pool_of(proxy, other) == before[other]
    assert common_pool(proxy) == common
    assert letter_at(proxy, changed) == b"A"


def test_a_change_in_the_common_pool_leaves_the_pool_of_a_service_alone(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    changed, same, own = transport.ports(3)
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    services = [service(changed, old), service(same, old), service(own, old, workers=2)]
    proxy = start_services(*services, workers=2)
    all_idle(proxy, 4)
    before = pool_of(proxy, own)
    services[0] = service(changed, new)
    services_file.reload(proxy, *services)
    wait_until(lambda: letter_at(proxy, changed) == b"B", "the new endpoint")
    assert letter_at(proxy, same) == b"A"
    all_idle(proxy, 4)
    assert pool_of(proxy, own) == before


@pytest.mark.hybrid_only  # no transport has a part in it
def test_an_allowlist_that_permits_more_replaces_no_worker(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    services = [service(one, server), service(two, server, workers=1)]
    proxy = start_services(*services, workers=1)
    before = all_idle(proxy, 2)
    services_file.write(services, [(server.host, server.port), ("192.0.2.1", 443)])
    services_file.reload(proxy)
    assert all_idle(proxy, 2) == before


@pytest.mark.hybrid_only  # no transport has a part in it
def test_workers_have_their_services_name_while_there_are_others(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    first, second = service(one, server, workers=2), service(two, server, workers=1)
    proxy = start_services(first)
    before = sorted(proxy.wait_for_workers(2, "idle"))
    alone = {"vsock-proxy: worker 1 idle", "vsock-proxy: worker 2 idle"}
    assert set(proxy.titles()) == alone
    with proxy.connect(one) as live:
        assert say(live) == b"A"
        (busy,) = proxy.wait_for_workers(1, " -> ")
        services_file.reload(proxy, first, second)
        (idle,) = set(before) - {busy}
        wait_until(lambda: f" {one}/" in processes.title(idle), "it has the name of its service")
    named = {f"vsock-proxy: worker {one}/{number} idle" for number in (1, 2)}
    wait_until(
        lambda: set(proxy.titles()) == {*named, f"vsock-proxy: worker {two}/1 idle"}, "all have"
    )
    proxy.log.wait_for(rf"info worker {one}/\d: {ID}{one}: .* ended: ")
    assert {row.worker for row in board.ask(proxy)} == {f"{one}/1", f"{one}/2", f"{two}/1"}
    services_file.reload(proxy, first)
    wait_until(lambda: set(proxy.titles()) == alone, "they have no such name any more")
    assert sorted(proxy.workers()) == before
    with proxy.connect(one) as client:
        assert say(client) == b"A"
    proxy.log.wait_for(rf"info worker \d: {ID}unix -> ")


# A listener that stays


@pytest.mark.hybrid_only  # it is by its file that a listener can be told from another
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_listener_of_a_service_that_changes_is_kept(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Hybrid,
    services_file: ServicesFile,
    change: Callable[[Service], Service],
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"), host="0.0.0.0")
    server.host = "127.0.0.1"
    services = [service(one, server), service(two, server, workers=1)]
    proxy = start_services(*services, workers=1)
    inodes = [transport.path_of(port).stat().st_ino for port in (one, two)]
    services_file.reload(proxy, *map(change, services))
    assert [transport.path_of(port).stat().st_ino for port in (one, two)] == inodes
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]


@pytest.mark.tcp_too
@pytest.mark.parametrize("own", [False, True], ids=["the common pool", "a pool of its own"])
def test_a_client_that_waits_in_the_backlog_is_served_by_the_new_workers(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    own: bool,
) -> None:
    one, two = transport.ports(2)
    keys = {"workers": 1} if own else {}
    held, new = start_server(silent), start_server(letter(b"B"))
    proxy = start_services(service(one, held), service(two, held, **keys), workers=1)
    with proxy.connect(two) as holder, proxy.connect(two) as waits:
        held.wait_for_connections(1)
        waits.sendall(b"?")
        services_file.reload(proxy, service(one, held), service(two, new, **keys))
        assert waits.recv(1) == b"B"
        # The one that was there has noticed nothing.
        assert nothing_came(holder)
    assert len(held.accepted) == 1


@pytest.mark.parametrize("own", [False, True], ids=["the common pool", "a pool of its own"])
def test_a_new_endpoint_serves_new_clients_and_leaves_live_connections(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    own: bool,
) -> None:
    one, two = transport.ports(2)
    keys = {"workers": 2} if own else {}
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    # A pool that was changed is no service that is gone: its connections have all the time.
    proxy = start_services(
        service(one, old), service(two, old, **keys), workers=2, options=["--drain-timeout", "0.3"]
    )
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        services_file.reload(proxy, service(one, old), service(two, new, **keys))
        wait_until(lambda: letter_at(proxy, two) == b"B", "the new endpoint")
        for _ in range(20):
            assert letter_at(proxy, two) == b"B"
            assert letter_at(proxy, one) == b"A"
        threading.Event().wait(1.0)
        assert say(live) == b"A"
    all_idle(proxy, 4 if own else 2)


def test_a_changed_option_holds_for_new_connections(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    server = start_server(silent)
    one, two = transport.ports(2)
    proxy = start_services(service(one, server), service(two, server), workers=2)
    with proxy.connect(one) as old:
        server.wait_for_connections(1)
        services_file.reload(proxy, service(one, server, idle_timeout=0.2), service(two, server))
        with proxy.connect(one) as new:
            assert end_of(new) == b""
        proxy.log.wait_for("idle timeout")
        assert nothing_came(old)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)], ids=["more", "fewer"])
def test_another_number_of_workers_is_how_many_serve_from_now_on(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    before: int,
    after: int,
) -> None:
    one, two = transport.ports(2)
    server = start_server(silent)
    proxy = start_services(service(one, server), service(two, server, workers=before), workers=1)
    with proxy.connect(two) as live:
        server.wait_for_connections(1)
        services_file.reload(proxy, service(one, server), service(two, server, workers=after))
        wait_until(
            lambda: len(proxy.workers(f"worker {two}/")) == after + 1, "the new pool beside it"
        )
        clients = [proxy.connect(two) for _ in range(after + 1)]
        server.wait_for_connections(1 + after)
        wait_until(
            lambda: len(proxy.workers(f"[{two}: ")) == 1 + after, "all of the new pool are busy"
        )
        assert len(server.accepted) == 1 + after
        live.close()
        # The place of an old worker is gone with it.
        wait_until(lambda: len(proxy.workers(f"worker {two}/")) == after, "the old one is gone")
        assert len(server.accepted) == 1 + after
        for client in clients:
            client.close()


# Services that come, go and move


def test_a_service_that_was_added_is_served(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two, three = transport.ports(3)
    server = start_server(letter(b"A"))
    services = [service(one, server)]
    proxy = start_services(*services, workers=2)
    services += [
        service(two, start_server(letter(b"B"))),
        service(three, start_server(letter(b"C")), workers=1),
    ]
    assert is_refused(proxy, two)
    services_file.reload(proxy, *services)
    assert [letter_at(proxy, port) for port in (one, two, three)] == [b"A", b"B", b"C"]
    assert processes.title(proxy.pid) == "vsock-proxy: master, 3 services"


@pytest.mark.tcp_too
@pytest.mark.parametrize("own", [False, True], ids=["the common pool", "a pool of its own"])
def test_a_removed_service_refuses_new_clients_and_keeps_its_connections(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    own: bool,
) -> None:
    one, two, three = transport.ports(3)
    server = start_server(letter(b"A"))
    keys = {"workers": 2} if own else {}
    services = [service(one, server), service(two, server), service(three, server, **keys)]
    proxy = start_services(*services, workers=2)
    with proxy.connect(three) as live:
        assert say(live) == b"A"
        services_file.reload(proxy, *services[:2])
        wait_until(lambda: is_refused(proxy, three), "new clients are refused")
        if isinstance(transport, Hybrid):
            assert not transport.path_of(three).exists()
        assert say(live) == b"A"
        assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]
    all_idle(proxy, 2)
    assert processes.title(proxy.pid) == "vsock-proxy: master, 2 services"


def test_no_process_of_another_service_keeps_the_port_of_one_that_is_gone(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    ports = transport.ports(4)
    server = start_server(letter(b"A"))
    # By name, so that there is a resolver too.
    endpoint = ("localhost", server.port)
    shared = [service(port, endpoint, family="ipv4") for port in ports[:2]]
    own = [service(port, endpoint, family="ipv4", workers=2) for port in ports[2:]]
    proxy = start_services(*shared, *own, workers=2)
    with proxy.connect(ports[0]) as one, proxy.connect(ports[2]) as other:
        assert (say(one), say(other)) == (b"A", b"A")
        services_file.reload(proxy, shared[0], own[0])
        for port in (ports[1], ports[3]):
            wait_until(lambda port=port: is_refused(proxy, port), "it is gone")  # type: ignore[misc]
            # So another program may have it now.
            transport.occupy(port).close()
        assert (say(one), say(other)) == (b"A", b"A")


def test_a_client_that_waits_for_a_removed_service_is_closed(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two, three = transport.ports(3)
    server = start_server(silent)
    services = [service(one, server), service(two, server), service(three, server, workers=1)]
    proxy = start_services(*services, workers=1)
    with proxy.connect(three), proxy.connect(three) as waits:
        server.wait_for_connections(1)
        services_file.reload(proxy, *services[:2])
        assert end_of(waits) == b""


def test_a_connection_of_a_removed_service_keeps_the_name_of_the_service(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    proxy = start_services(service(one, server), service(two, server))
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        services_file.reload(proxy, service(one, server))
    proxy.log.wait_for(rf"info worker \d: {ID}{two}: .* ended: 1 bytes up")


@pytest.mark.parametrize("own", [False, True], ids=["the common pool", "a pool of its own"])
def test_the_connections_of_a_service_that_is_gone_have_the_drain_timeout(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    own: bool,
) -> None:
    stays, goes = transport.ports(2)
    server = start_server(letter(b"A"))
    keys = {"workers": 2} if own else {}
    services = [service(stays, server), service(goes, server, **keys)]
    limit = 0.5 * SLOWNESS
    proxy = start_services(*services, workers=2, options=["--drain-timeout", str(limit)])
    with proxy.connect(stays) as live, proxy.connect(goes) as cut:
        assert (say(live), say(cut)) == (b"A", b"A")
        began = time.monotonic()
        services_file.reload(proxy, services[0])
        assert say(cut) == b"A"
        assert end_of(cut) == b""
        assert time.monotonic() - began >= limit
        assert time.monotonic() - began < limit + 2 * SLOWNESS
        proxy.log.wait_for("ended: .* proxy ends now")
        # Who is served by another service of the same pool has nothing to do with it.
        assert say(live) == b"A"
        assert letter_at(proxy, stays) == b"A"
    all_idle(proxy, 2)


def test_a_service_that_is_back_is_served_while_old_connections_drain(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    services = [service(one, server), service(two, server, workers=1)]
    proxy = start_services(*services, workers=1)
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        services_file.reload(proxy, services[0])
        wait_until(lambda: is_refused(proxy, two), "it is gone")
        services_file.reload(proxy, *services)
        assert letter_at(proxy, two) == b"A"
        assert say(live) == b"A"
    all_idle(proxy, 2)


def test_a_service_moves_into_a_pool_of_its_own_and_back(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    stays, moves = transport.ports(2)
    server = start_server(letter(b"A"))
    common = [service(stays, server), service(moves, server)]
    own = [service(stays, server), service(moves, server, workers=3)]
    proxy = start_services(*common, workers=2)
    with proxy.connect(moves) as first, proxy.connect(stays) as other:
        assert (say(first), say(other)) == (b"A", b"A")
        services_file.reload(proxy, *own)
        wait_until(lambda: len(pool_of(proxy, moves)) == 3, "a pool of its own")
        with proxy.connect(moves) as second:
            assert say(second) == b"A"
            services_file.reload(proxy, *common)
            assert [letter_at(proxy, port) for port in (stays, moves)] == [b"A", b"A"]
            assert (say(first), say(second), say(other)) == (b"A", b"A", b"A")
    all_idle(proxy, 2)
    assert pool_of(proxy, moves) == []


def test_the_common_pool_goes_and_comes_back_with_its_services(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    both = [service(one, server), service(two, server, workers=1)]
    proxy = start_services(*both, workers=2)
    services_file.reload(proxy, both[1])
    all_idle(proxy, 1)
    wait_until(lambda: is_refused(proxy, one), "it is gone")
    services_file.reload(proxy, *both)
    all_idle(proxy, 3)
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]


def test_every_service_may_be_another_one(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two, three, four = transport.ports(4)
    server = start_server(letter(b"A"))
    proxy = start_services(service(one, server), service(two, server, workers=1), workers=1)
    services_file.reload(proxy, service(three, server), service(four, server, workers=1))
    assert [letter_at(proxy, port) for port in (three, four)] == [b"A", b"A"]
    for port in (one, two):
        wait_until(lambda port=port: is_refused(proxy, port), "it is gone")  # type: ignore[misc]
    all_idle(proxy, 2)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_name_of_the_old_workers_is_not_confused_with_that_of_the_new(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    proxy = start_services(service(one, server), service(two, server, workers=1), workers=1)
    with proxy.connect(two) as live:
        exchange(live, b"12345")
        (old,) = proxy.wait_for_workers(1, " -> ")
        services_file.reload(
            proxy, service(one, server), service(two, server, workers=1, idle_timeout=900)
        )
        wait_until(lambda: set(pool_of(proxy, two)) - {old}, "a new worker")
        os.kill(old, signal.SIGKILL)
        (line,) = proxy.log.wait_for(" ended: .* worker died")
        assert re.search(rf"warning master: {ID}{two}: .* 5 bytes up, 5 bytes down", line)
    # The dead one was to end anyway: nobody takes its place.
    all_idle(proxy, 2)
    with proxy.connect(two) as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_totals_outlive_a_pool(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    services = [service(one, server), service(two, server, workers=1)]
    proxy = start_services(*services, workers=1)
    for port in (one, two):
        with proxy.connect(port) as client:
            exchange(client, b"12345")
    proxy.log.wait_for(" ended: ", count=2)
    services_file.reload(proxy, service(one, server, idle_timeout=900))
    with proxy.connect(one) as client:
        exchange(client, b"12345")
    proxy.log.wait_for(" ended: ", count=3)
    all_idle(proxy, 1)
    board.ask(proxy)
    assert "3 connections served, 0 failed" in board.totals(proxy)
    assert "15 bytes up, 15 bytes down" in board.totals(proxy)


# A file that cannot be put into force

Fault = Callable[[ServicesFile, List[Service]], None]


def replaced(key: str, value: object) -> Fault:
    """The second service has another value."""

    def write(file: ServicesFile, services: List[Service]) -> None:
        permitted = [(str(one["address"]), int(str(one["port"]))) for one in services]
        file.write([services[0], {**services[1], key: value}], permitted)

    return write


def text(content: str) -> Fault:
    """The file has this in it."""

    def write(file: ServicesFile, services: List[Service]) -> None:
        file.path.write_text(content)

    return write


def twice(file: ServicesFile, services: List[Service]) -> None:
    file.write([*services, services[0]])


def not_permitted(file: ServicesFile, services: List[Service]) -> None:
    file.write(services, [(str(services[0]["address"]), int(str(services[0]["port"])))])


def no_services(file: ServicesFile, services: List[Service]) -> None:
    file.path.write_text(file.path.read_text().split("services:")[0])


def is_gone(file: ServicesFile, services: List[Service]) -> None:
    file.path.unlink()


def is_a_folder(file: ServicesFile, services: List[Service]) -> None:
    file.path.unlink()
    file.path.mkdir()


# What is wrong, and how the error begins: with the key that it is about, if it is about one.
FAULTS: Dict[str, Tuple[Fault, str]] = {
    "no YAML": (text("services: ["), "file FILE, line 2: not valid YAML"),
    "empty": (text(""), "file FILE: empty"),
    "no text": (text("\0"), "file FILE, line 1: not valid YAML"),
    "no allowlist": (text("services: []"), "file FILE, line 1: no 'allowlist:' key"),
    "a list": (text("- services"), "file FILE, line 1: a list where 'allowlist:' is expected"),
    "an empty allowlist": (
        text("allowlist:\nservices: []"),
        "allowlist FILE, line 1: allowlist is ",
    ),
    "a bad entry": (text("allowlist:\n- a\nservices: []"), "allowlist FILE, line 2: entry is 'a'"),
    "an unknown key": (
        replaced("surprise", 1),
        "services FILE, line 6: unknown key the text 'surprise'",
    ),
    "no workers": (replaced("workers", 0), "services FILE, line 6: workers is '0'"),
    "text for a number": (replaced("idle_timeout", "soon"), "services FILE, line 6: idle_timeout "),
    "a bad port": (replaced("port", 70000), "services FILE, line 6: port is '70000'"),
    "a bad name": (replaced("address", "no host name"), "services FILE, line 6: address is "),
    "a port twice": (twice, "services FILE, line 8: a second service on "),
    "not permitted": (not_permitted, "services FILE, line 5: service PORT: 127.0.0.1:"),
    "no services": (no_services, "file FILE: no 'services:' key; expected it with a list of "),
    "no service": (
        lambda file, _: file.write([], [("a.test", 443)]),
        "services FILE, line 3: services is nothing",
    ),
    "gone": (is_gone, "file FILE: No such file or directory; the services stay as they were"),
    "a folder": (is_a_folder, "file FILE: is a directory, where a regular file is expected; the "),
}


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(("fault", "beginning"), FAULTS.values(), ids=FAULTS.keys())
def test_a_file_with_a_fault_is_one_error_line_and_changes_nothing(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    fault: Fault,
    beginning: str,
) -> None:
    one, two = transport.ports(2)
    services = [
        service(one, start_server(letter(b"A"))),
        service(two, start_server(letter(b"B")), workers=1),
    ]
    proxy = start_services(*services, workers=1)
    before = all_idle(proxy, 2)
    with proxy.connect(two) as live:
        assert say(live) == b"B"
        fault(services_file, services)
        line = services_file.reload_in_vain(proxy)
        beginning = beginning.replace("FILE", str(services_file.path)).replace("PORT", str(two))
        assert line.partition(" error master: ")[2].startswith(beginning)
        # The command line is not read again.
        assert "--config" not in line
        assert "<local_port>" not in line
        assert say(live) == b"B"
    assert len(proxy.log.matching(" error ")) == 1
    assert all_idle(proxy, 2) == before
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"B"]
    if services_file.path.is_dir():
        services_file.path.rmdir()
    services_file.write(services)
    services_file.reload(proxy)
    assert all_idle(proxy, 2) == before


@pytest.mark.tcp_too
def test_a_new_port_that_cannot_be_bound_changes_nothing(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two, free, used = transport.ports(4)
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    services = [service(one, old), service(two, old, workers=1)]
    proxy = start_services(*services, workers=1)
    before = all_idle(proxy, 2)
    with transport.occupy(used):
        services_file.write([service(one, new), service(free, new), service(used, new)])
        line = services_file.reload_in_vain(proxy)
        assert re.search(rf"(?<!\d){used}(?!\d)", line)
        assert "use" in line
    assert all_idle(proxy, 2) == before
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]
    assert is_refused(proxy, free)
    if isinstance(transport, Hybrid):
        assert not transport.path_of(free).exists()
        transport.path_of(used).unlink()
    services_file.reload(proxy)
    assert [letter_at(proxy, port) for port in (one, free, used)] == [b"B", b"B", b"B"]
    wait_until(lambda: is_refused(proxy, two), "it is gone")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_systemd_learns_that_a_reload_is_over_whether_it_worked_or_not(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    systemd = services_file.systemd
    one, two = transport.ports(2)
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    proxy = start_services(service(one, old))
    services_file.write([service(one, new), service(two, new)])
    proxy.send(signal.SIGHUP)
    systemd.wait_for("^RELOADING=1\nMONOTONIC_USEC=")
    systemd.wait_for("^READY=1$")
    # Whoever comes after `systemctl reload` finds what is new.
    assert [letter_at(proxy, port) for port in (one, two)] == [b"B", b"B"]
    services_file.path.write_text("nonsense")
    proxy.send(signal.SIGHUP)
    systemd.wait_for("^RELOADING=1\nMONOTONIC_USEC=")
    systemd.wait_for("^READY=1$")
    assert letter_at(proxy, two) == b"B"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_that_no_process_can_be_had_for_is_over_at_once(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    (one,) = transport.ports(1)
    proxy = start_services(service(one, start_server(letter(b"A"))), workers=1)
    all_idle(proxy, 1)
    # One is left, to tell systemd, and not the two of a pipe.
    files = processes.open_files(proxy.pid) + 1
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (files, files))
    began = time.monotonic()
    line = services_file.reload_in_vain(proxy)
    # It must not wait for whatever wakes the master next.
    assert time.monotonic() - began < AT_ONCE * SLOWNESS
    assert "Too many open files" in line
    assert "LimitNOFILE=" in line
    assert letter_at(proxy, one) == b"A"


@contextlib.contextmanager
def metadata_that_hangs(services_file: ServicesFile) -> Iterator[Dict[str, str]]:
    """The environment of a proxy that asks an instance metadata service which never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            **os.environ,
            "NOTIFY_SOCKET": services_file.systemd.address,
            "VSOCK_PROXY_IMDS_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}",
        }


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_that_waits_for_the_instance_metadata_in_vain_says_so(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    with metadata_that_hangs(services_file) as environment:
        proxy = start_services(service(one, server), environment=environment)
        services_file.write(
            [service(one, server), service(two, ("kms.{region}.test", 443))],
            [(server.host, server.port)],
        )
        line = services_file.reload_in_vain(proxy)
    assert "no instance metadata for {region}" in line
    assert "timed out" in line
    assert letter_at(proxy, one) == b"A"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_no_process_that_reads_outlives_a_master_that_is_killed(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    with metadata_that_hangs(services_file) as environment:
        proxy = start_services(service(one, server), environment=environment)
        services_file.write(
            [service(one, server), service(two, ("kms.{region}.test", 443))],
            [(server.host, server.port)],
        )
        proxy.send(signal.SIGHUP)
        wait_until(lambda: READER in proxy.titles(), "the file is read")
        pids = proxy.children()
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: not any(map(processes.is_alive, pids)), "none is left", timeout=2.0)


# Reloads and other signals at the same time


def parses(proxy: Proxy) -> bool:
    """Whether the process that reads has had some time; the reading itself takes little."""
    readers = [pid for pid in proxy.children() if processes.title(pid) == READER]
    return any(processes.processor_ticks(pid) >= 3 for pid in readers)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_asked_for_during_another_begins_once_that_is_in_force(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    # It takes a while until all these workers have ended.
    proxy = start_services(service(one, server), workers=80)
    all_idle(proxy, 80)
    # It takes a while to read so much.
    services_file.write(
        [service(one, server), service(two, server)],
        [(server.host, server.port), *(("10.0.0.1", port) for port in range(1, 5000))],
    )
    proxy.send(signal.SIGHUP)
    wait_until(lambda: parses(proxy), "the file has been read and is parsed")
    services_file.write([service(one, server)])
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(r"services read again: .* removed")
    assert len(proxy.log.matching(r"services read again: .* added")) == 1
    services_file.systemd.wait_for("^RELOADING=1\n")
    services_file.systemd.wait_for("^RELOADING=1\n")
    services_file.systemd.wait_for("^READY=1$")
    assert is_refused(proxy, two)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_asked_for_during_a_reload_reads_what_the_file_says_then(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    other = start_server(letter(b"B"))
    proxy = start_services(service(one, server), service(two, server, workers=2), workers=2)
    for endpoint in (other, server, other):
        services_file.write([service(one, endpoint), service(two, endpoint, workers=2)])
        proxy.send(signal.SIGHUP)
    wait_until(
        lambda: [letter_at(proxy, port) for port in (one, two)] == [b"B", b"B"],
        "what was written last is in force",
    )
    all_idle(proxy, 4)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_after_a_storm_of_reloads_the_last_file_is_in_force(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two, three = transport.ports(3)
    server, other = start_server(letter(b"A")), start_server(letter(b"B"))
    variants = [
        [service(one, server), service(two, server)],
        [service(one, server), service(two, server, workers=2), service(three, server)],
        [service(one, server, workers=1), service(three, other)],
        [service(one, server)],
    ]
    proxy = start_services(*variants[0], workers=2)
    for number in range(40):
        services_file.write(variants[number % 4])
        proxy.send(signal.SIGHUP)
        # At a moment that is another one each time.
        threading.Event().wait(number % 7 * 0.003)
        assert letter_at(proxy, one) == b"A"
    services_file.write([service(one, server), service(three, other, workers=1)])
    proxy.send(signal.SIGHUP)
    wait_until(
        lambda: is_refused(proxy, two) and letter_at_if_any(proxy, three) == b"B",
        "what was written last is in force",
    )
    all_idle(proxy, 3)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=lambda number: number.name)
@pytest.mark.parametrize("milliseconds", [0, 3, 10, 20, 40, 80])
def test_the_end_during_a_reload_is_obeyed_and_leaves_no_process(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    milliseconds: int,
    number: signal.Signals,
) -> None:
    ports = transport.ports(4)
    old, new = start_server(), start_server()
    proxy = start_services(
        service(ports[0], old), *(service(port, old, workers=2) for port in ports[1:]), workers=2
    )
    seen = set(proxy.children())
    services_file.write(
        [service(ports[0], new), *(service(port, new, workers=3) for port in ports[1:])]
    )
    proxy.send(signal.SIGHUP)
    threading.Event().wait(milliseconds / 1000)
    seen |= set(proxy.children())
    proxy.send(number)
    seen |= set(proxy.children())
    assert proxy.wait() == os.EX_OK
    wait_until(lambda: not any(map(processes.is_alive, seen)), "no process is left")
    proxy.log.join()
    assert not proxy.log.matching(" error | starting another")
    for port in ports:
        assert is_refused(proxy, port)


def test_sigterm_after_a_reload_lets_connections_of_old_and_new_pools_end(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    proxy = start_services(service(one, old), service(two, old, workers=1), workers=1)
    with proxy.connect(one) as first, proxy.connect(two) as second:
        assert (say(first), say(second)) == (b"A", b"A")
        services_file.reload(proxy, service(one, new))
        wait_until(lambda: letter_at(proxy, one) == b"B", "the new endpoint")
        with proxy.connect(one) as third:
            assert say(third) == b"B"
            proxy.send(signal.SIGTERM)
            wait_until(lambda: is_refused(proxy, one), "new clients are refused")
            assert (say(first), say(second), say(third)) == (b"A", b"A", b"B")
            assert not proxy.has_ended()
    assert proxy.wait(timeout=2) == os.EX_OK


def test_a_worker_of_a_pool_that_is_replaced_may_die_at_any_time(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    servers = [start_server(letter(b"A")), start_server(letter(b"B"))]
    proxy = start_services(service(one, servers[0]), service(two, servers[0], workers=2), workers=2)
    all_idle(proxy, 4)
    for number in range(1, 9):
        endpoint, name = servers[number % 2], b"AB"[number % 2 : number % 2 + 1]
        services_file.write([service(one, endpoint), service(two, endpoint, workers=2)])
        proxy.send(signal.SIGHUP)
        # At a moment that is another one each time.
        threading.Event().wait(number * 0.005)
        killed = proxy.workers()[:2]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # While one dies it may still be woken for a client, of whom nobody else is told then.
        wait_until(lambda: not any(map(processes.is_alive, killed)), "they are gone")  # noqa: B023
        for port in (one, two):
            wait_until(
                lambda port=port, name=name: letter_at_if_any(proxy, port) == name,  # type: ignore[misc]
                "the new endpoint",
            )
    all_idle(proxy, 4)


def letter_at_if_any(proxy: Proxy, port: int) -> bytes:
    """As letter_at(); empty for a client that is refused, or whose worker is killed."""
    try:
        return letter_at(proxy, port)
    except (AssertionError, ConnectionError, FileNotFoundError):
        return b""


def test_reloads_leave_no_descriptor_and_no_process_behind(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two, three = transport.ports(3)
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    names = ("localhost", old.port)
    first = [service(one, old), service(two, old, workers=1), service(three, names)]
    second = [service(one, new), service(two, new, workers=2)]
    proxy = start_services(*first, workers=1)
    services_file.reload(proxy, *second)
    services_file.reload(proxy, *first)
    all_idle(proxy, 2)
    files = processes.open_files(proxy.pid)
    of_workers = sorted(processes.open_files(pid) for pid in proxy.workers())
    for _ in range(10):
        services_file.reload(proxy, *second)
        services_file.reload(proxy, *first)
    all_idle(proxy, 2)
    # What was closed last may be open for a moment longer; a leak would be one in each reload.
    assert processes.open_files(proxy.pid) <= files + 2
    assert sorted(processes.open_files(pid) for pid in proxy.workers()) == of_workers
    wait_until(lambda: len(proxy.children()) == 3, "two workers and the resolver are left")


@pytest.mark.hybrid_only  # a path is no part of vsock
def test_a_service_whose_path_is_another_is_another_service(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Hybrid,
    services_file: ServicesFile,
    tmp_path: Path,
) -> None:
    one, two = transport.ports(2)
    server = start_server(letter(b"A"))
    proxy = start_services(service(one, server), service(two, server), workers=2)
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        services_file.reload(
            proxy, service(one, server), service(two, server, uds_path=str(tmp_path / "other"))
        )
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / f"other_{two}"))
            assert say(client) == b"A"
        wait_until(lambda: is_refused(proxy, two), "the old path is gone")
        assert not transport.path_of(two).exists()
        assert say(live) == b"A"


@pytest.mark.hybrid_only  # a path is no part of vsock
def test_services_on_the_same_port_of_two_paths_have_their_path_as_name(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Hybrid,
    services_file: ServicesFile,
    tmp_path: Path,
) -> None:
    one, two = transport.ports(2)
    first, second = start_server(letter(b"A")), start_server(letter(b"B"))
    other = tmp_path / f"other_{one}"
    services = [
        service(one, first),
        service(one, second, uds_path=str(tmp_path / "other"), workers=1),
        service(two, first),
    ]
    proxy = start_services(*services, workers=1)
    for _ in range(2):
        assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(other))
            assert say(client) == b"B"
            proxy.wait_for_workers(1, f"worker {other}/1 [{other}: ")
        services[1] = {**services[1], "idle_timeout": 900}
        services_file.reload(proxy, *services)


def limited_to(processes_allowed: int) -> List[str]:
    """What to put before the program so that it has this number of processes at most."""
    return ["prlimit", f"--nproc={processes_allowed}:1000", *LIMITED_USER]


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be")
def test_old_workers_serve_while_a_reload_can_start_no_process(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    one, two = transport.ports(2)
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    # The master, four workers, and the process that reads the file.
    proxy = start_services(
        service(one, old), service(two, old, workers=2), workers=2, wrapper=limited_to(6)
    )
    all_idle(proxy, 4)
    services_file.write([service(one, new), service(two, new, workers=2)])
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("error master: cannot start .* Resource temporarily unavailable")
    for _ in range(20):
        for port in (one, two):
            assert letter_at(proxy, port) in (b"A", b"B")
    subprocess.run([*LIMITED_USER, "prlimit", f"--pid={proxy.pid}", "--nproc=1000"], check=True)
    wait_until(
        lambda: [letter_at(proxy, port) for port in (one, two)] == [b"B", b"B"], "it is in force"
    )
    all_idle(proxy, 4)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be")
def test_a_reload_with_room_for_one_process_replaces_pool_after_pool(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    ports = transport.ports(3)
    old, new = start_server(letter(b"A")), start_server(letter(b"B"))
    # The master, six workers, and the process that reads the file.
    proxy = start_services(
        *(service(port, old, workers=2) for port in ports), wrapper=limited_to(8)
    )
    all_idle(proxy, 6)
    services_file.write(service(port, new, workers=2) for port in ports)
    proxy.send(signal.SIGHUP)
    for port in ports:
        wait_until(lambda port=port: letter_at(proxy, port) == b"B", "it is in force")  # type: ignore[misc]
    proxy.log.wait_for("info master: all 6 workers run")
    all_idle(proxy, 6)
    assert [letter_at(proxy, port) for port in ports] == [b"B"] * 3


def test_nothing_is_left_if_the_master_is_killed_during_a_reload(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    ports = transport.ports(3)
    old, new = start_server(), start_server()
    for milliseconds in (0, 5, 10, 20, 40):
        proxy = start_services(*(service(port, old, workers=2) for port in ports))
        services_file.write(service(port, new, workers=2) for port in ports)
        seen = set(proxy.children())
        proxy.send(signal.SIGHUP)
        threading.Event().wait(milliseconds / 1000)
        seen |= set(proxy.children())
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: not any(map(processes.is_alive, seen)), "no process is left")  # noqa: B023
        assert all(is_refused(proxy, port) for port in ports)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_more_services_than_workers_after_a_reload_is_said_once(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    ports = transport.ports(4)
    server = start_server(letter(b"A"))
    proxy = start_services(*(service(port, server) for port in ports[:2]), workers=2)
    few = r"warning master: 3 services share 2 workers: .*-w"
    services_file.reload(proxy, *(service(port, server) for port in ports[:3]))
    proxy.log.wait_for(few)
    # That changes another pool.
    shared = [service(port, server) for port in ports[:3]]
    services_file.reload(proxy, *shared, service(ports[3], server, workers=1))
    services_file.reload(proxy)
    assert len(proxy.log.matching(few)) == 1


# Under load


@pytest.mark.alone
def test_reloads_under_load_lose_and_refuse_no_client_of_a_lasting_port(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    heard: Set[int] = set()
    first, second = start_server(answering(b"A", heard)), start_server(answering(b"B", heard))
    same, changes, steady, other, moves, comes_and_goes = ports = transport.ports(6)
    services = {
        same: service(same, first, workers=3),
        changes: service(changes, first, workers=3),
        steady: service(steady, first),
        other: service(other, first),
        moves: service(moves, first),
        comes_and_goes: service(comes_and_goes, first),
    }
    changes_of_a_round: List[Callable[[], None]] = [
        lambda: services.update({changes: service(changes, second, workers=3)}),
        lambda: services.__delitem__(comes_and_goes),
        lambda: services.update({changes: service(changes, second, workers=4)}),
        lambda: services.update({moves: service(moves, first, workers=3)}),
        lambda: services.update({other: service(other, first, idle_timeout=900)}),
        lambda: services.update({comes_and_goes: service(comes_and_goes, second)}),
        lambda: services.update({changes: service(changes, first, workers=3)}),
        lambda: services.update({moves: service(moves, second)}),
        lambda: services.update({other: service(other, first)}),
        lambda: services.update({comes_and_goes: service(comes_and_goes, first, workers=2)}),
    ]
    proxy = start_services(*services.values(), workers=8)
    untouched = wait_until(lambda: pool_of(proxy, same), "its pool")
    # When which endpoint of the service that changes came into force.
    in_force = [(0.0, b"A")]
    with Crowd(proxy.connect, ports, RATE) as crowd:
        time.sleep(BETWEEN)
        began = time.monotonic()
        for number in range(RELOADS):
            changes_of_a_round[number % len(changes_of_a_round)]()
            services_file.reload(proxy, *services.values())
            name = b"A" if services[changes]["port"] == first.port else b"B"
            in_force.append((time.monotonic(), name))
            time.sleep(BETWEEN)
        seconds = time.monotonic() - began
    for port in ports:
        ends = Counter(client.end for client in crowd.of(port))
        assert port == comes_and_goes or set(ends) == {End.ANSWERED}, (port, ends)
        assert sum(ends.values()) > KEPT_UP * RATE * seconds, (port, ends, seconds)
        assert not ends[End.WRONG]
    cut = [client for client in crowd.been if client.end is End.CUT]
    assert not [client for client in cut if client.number in heard]
    assert {client.end for client in crowd.of(comes_and_goes)} >= {End.ANSWERED, End.REFUSED}
    assert {client.letter for client in crowd.of(changes)} == {b"A", b"B"}
    for client in crowd.of(changes):
        before = [name for when, name in in_force if when < client.began - HANDED_OVER]
        since = [name for when, name in in_force if client.began - HANDED_OVER <= when]
        assert client.letter in {*before[-1:], *since}
    assert pool_of(proxy, same) == untouched
    # How many lines were left out, as there were too many; and that a slow machine is busy.
    known = proxy.log.matching("lines? .*left out|are busy, further clients wait")
    assert [line for line in proxy.log.matching(" (error|warning) ") if line not in known] == []
