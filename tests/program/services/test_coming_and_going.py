"""A reload that adds, removes and moves services."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.program.services.conftest import Scene, either_pool
from tests.support import board, processes
from tests.support.clients import end_of, is_refused
from tests.support.program import ID
from tests.support.servers import exchange, silent
from tests.support.services import all_idle, letter, letter_at, pool_of, say, service
from tests.support.timing import SLOWNESS, wait_until
from tests.support.transports import Hybrid


def test_a_service_that_was_added_is_served(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    server = scene.server(letter(b"A"))
    services = [service(one, server)]
    proxy = scene.start(*services, workers=2)
    services += [
        service(two, scene.server(letter(b"B"))),
        service(three, scene.server(letter(b"C")), workers=1),
    ]
    assert is_refused(proxy, two)
    scene.reload(proxy, *services)
    assert [letter_at(proxy, port) for port in (one, two, three)] == [b"A", b"B", b"C"]
    assert processes.title(proxy.pid) == "vsock-proxy: master, 3 services"


@pytest.mark.tcp_too
@either_pool
def test_a_removed_service_refuses_new_clients_and_keeps_its_connections(
    scene: Scene, own: bool
) -> None:
    one, two, three = scene.ports(3)
    server = scene.server(letter(b"A"))
    keys = {"workers": 2} if own else {}
    services = [service(one, server), service(two, server), service(three, server, **keys)]
    proxy = scene.start(*services, workers=2)
    with proxy.connect(three) as live:
        assert say(live) == b"A"
        scene.reload(proxy, *services[:2])
        wait_until(lambda: is_refused(proxy, three), "new clients are refused")
        if isinstance(scene.transport, Hybrid):
            assert not scene.transport.path_of(three).exists()
        assert say(live) == b"A"
        assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]
    all_idle(proxy, 2)
    assert processes.title(proxy.pid) == "vsock-proxy: master, 2 services"


def test_no_process_of_another_service_keeps_the_port_of_one_that_is_gone(scene: Scene) -> None:
    ports = scene.ports(4)
    server = scene.server(letter(b"A"))
    # By name, so that there is a resolver too.
    endpoint = ("localhost", server.port)
    shared = [service(port, endpoint, family="ipv4") for port in ports[:2]]
    own = [service(port, endpoint, family="ipv4", workers=2) for port in ports[2:]]
    proxy = scene.start(*shared, *own, workers=2)
    with proxy.connect(ports[0]) as one, proxy.connect(ports[2]) as other:
        assert (say(one), say(other)) == (b"A", b"A")
        scene.reload(proxy, shared[0], own[0])
        for port in (ports[1], ports[3]):
            wait_until(lambda port=port: is_refused(proxy, port), "it is gone")  # type: ignore[misc]
            # So another program may have it now.
            scene.transport.occupy(port).close()
        assert (say(one), say(other)) == (b"A", b"A")


def test_a_client_that_waits_for_a_removed_service_is_closed(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    server = scene.server(silent)
    services = [service(one, server), service(two, server), service(three, server, workers=1)]
    proxy = scene.start(*services, workers=1)
    with proxy.connect(three), proxy.connect(three) as waits:
        server.wait_for_connections(1)
        scene.reload(proxy, *services[:2])
        assert end_of(waits) == b""


def test_a_connection_of_a_removed_service_keeps_the_name_of_the_service(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    proxy = scene.start(service(one, server), service(two, server))
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        scene.reload(proxy, service(one, server))
    proxy.log.wait_for(rf"info worker \d: {ID}{two}: .* ended: 1 bytes up")


@either_pool
def test_the_connections_of_a_service_that_is_gone_have_the_drain_timeout(
    scene: Scene, own: bool
) -> None:
    stays, goes = scene.ports(2)
    server = scene.server(letter(b"A"))
    keys = {"workers": 2} if own else {}
    services = [service(stays, server), service(goes, server, **keys)]
    limit = 0.5 * SLOWNESS
    proxy = scene.start(*services, workers=2, options=["--drain-timeout", str(limit)])
    with proxy.connect(stays) as live, proxy.connect(goes) as cut:
        assert (say(live), say(cut)) == (b"A", b"A")
        began = time.monotonic()
        scene.reload(proxy, services[0])
        assert say(cut) == b"A"
        assert end_of(cut) == b""
        assert time.monotonic() - began >= limit
        assert time.monotonic() - began < limit + 2 * SLOWNESS
        proxy.log.wait_for("ended: .* proxy ends now")
        # Who is served by another service of the same pool has nothing to do with it.
        assert say(live) == b"A"
        assert letter_at(proxy, stays) == b"A"
    all_idle(proxy, 2)


def test_a_service_that_is_back_is_served_while_old_connections_drain(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    services = [service(one, server), service(two, server, workers=1)]
    proxy = scene.start(*services, workers=1)
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        scene.reload(proxy, services[0])
        wait_until(lambda: is_refused(proxy, two), "it is gone")
        scene.reload(proxy, *services)
        assert letter_at(proxy, two) == b"A"
        assert say(live) == b"A"
    all_idle(proxy, 2)


def test_a_service_moves_into_a_pool_of_its_own_and_back(scene: Scene) -> None:
    stays, moves = scene.ports(2)
    server = scene.server(letter(b"A"))
    common = [service(stays, server), service(moves, server)]
    own = [service(stays, server), service(moves, server, workers=3)]
    proxy = scene.start(*common, workers=2)
    with proxy.connect(moves) as first, proxy.connect(stays) as other:
        assert (say(first), say(other)) == (b"A", b"A")
        scene.reload(proxy, *own)
        wait_until(lambda: len(pool_of(proxy, moves)) == 3, "a pool of its own")
        with proxy.connect(moves) as second:
            assert say(second) == b"A"
            scene.reload(proxy, *common)
            assert [letter_at(proxy, port) for port in (stays, moves)] == [b"A", b"A"]
            assert (say(first), say(second), say(other)) == (b"A", b"A", b"A")
    all_idle(proxy, 2)
    assert pool_of(proxy, moves) == []


def test_the_common_pool_goes_and_comes_back_with_its_services(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    both = [service(one, server), service(two, server, workers=1)]
    proxy = scene.start(*both, workers=2)
    scene.reload(proxy, both[1])
    all_idle(proxy, 1)
    wait_until(lambda: is_refused(proxy, one), "it is gone")
    scene.reload(proxy, *both)
    all_idle(proxy, 3)
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]


def test_every_service_may_be_another_one(scene: Scene) -> None:
    one, two, three, four = scene.ports(4)
    server = scene.server(letter(b"A"))
    proxy = scene.start(service(one, server), service(two, server, workers=1), workers=1)
    scene.reload(proxy, service(three, server), service(four, server, workers=1))
    assert [letter_at(proxy, port) for port in (three, four)] == [b"A", b"A"]
    for port in (one, two):
        wait_until(lambda port=port: is_refused(proxy, port), "it is gone")  # type: ignore[misc]
    all_idle(proxy, 2)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_name_of_the_old_workers_is_not_confused_with_that_of_the_new(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    proxy = scene.start(service(one, server), service(two, server, workers=1), workers=1)
    with proxy.connect(two) as live:
        exchange(live, b"12345")
        (old,) = proxy.wait_for_workers(1, " -> ")
        wait_until(lambda: " 5 bytes down" in board.totals_now(proxy), "all is counted")
        scene.reload(proxy, service(one, server), service(two, server, workers=1, idle_timeout=900))
        wait_until(lambda: set(pool_of(proxy, two)) - {old}, "a new worker")
        os.kill(old, signal.SIGKILL)
        (line,) = proxy.log.wait_for(" ended: .* worker died")
        assert re.search(rf"warning master: {ID}{two}: .* 5 bytes up, 5 bytes down", line)
    # The dead one was to end anyway: nobody takes its place.
    all_idle(proxy, 2)
    with proxy.connect(two) as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_totals_outlive_a_pool(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    services = [service(one, server), service(two, server, workers=1)]
    proxy = scene.start(*services, workers=1)
    for port in (one, two):
        with proxy.connect(port) as client:
            exchange(client, b"12345")
    proxy.log.wait_for(" ended: ", count=2)
    scene.reload(proxy, service(one, server, idle_timeout=900))
    with proxy.connect(one) as client:
        exchange(client, b"12345")
    proxy.log.wait_for(" ended: ", count=3)
    all_idle(proxy, 1)
    board.ask(proxy)
    assert "3 connections served, 0 failed" in board.totals(proxy)
    assert "15 bytes up, 15 bytes down" in board.totals(proxy)


# Paths


@pytest.mark.hybrid_only  # a path is no part of vsock
def test_a_service_whose_path_is_another_is_another_service(
    scene: Scene, transport: Hybrid, tmp_path: Path
) -> None:
    one, two = transport.ports(2)
    server = scene.server(letter(b"A"))
    proxy = scene.start(service(one, server), service(two, server), workers=2)
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        scene.reload(
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
    scene: Scene, transport: Hybrid, tmp_path: Path
) -> None:
    one, two = transport.ports(2)
    first, second = scene.server(letter(b"A")), scene.server(letter(b"B"))
    other = tmp_path / f"other_{one}"
    services = [
        service(one, first),
        service(one, second, uds_path=str(tmp_path / "other"), workers=1),
        service(two, first),
    ]
    proxy = scene.start(*services, workers=1)
    for _ in range(2):
        assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(other))
            assert say(client) == b"B"
            proxy.wait_for_workers(1, f"worker {other}/1 [{other}: ")
        services[1] = {**services[1], "idle_timeout": 900}
        scene.reload(proxy, *services)
