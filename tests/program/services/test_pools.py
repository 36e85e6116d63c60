"""Several services under one master: which worker serves which service."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import List

import pytest

from tests.program.services.conftest import Scene
from tests.support import processes
from tests.support.clients import end_of, is_refused
from tests.support.servers import exchange, silent
from tests.support.services import (
    common_pool,
    letter,
    letter_at,
    nothing_came,
    pool_of,
    say,
    service,
)
from tests.support.timing import wait_until


@pytest.mark.tcp_too
def test_each_port_leads_to_its_own_endpoint(scene: Scene) -> None:
    ports = scene.ports(5)
    letters = [bytes([code]) for code in b"ABCDE"]
    proxy = scene.start(
        *(service(port, scene.server(letter(name))) for port, name in zip(ports, letters)),
        workers=2,
    )
    for _ in range(5):
        assert [letter_at(proxy, port) for port in ports] == letters


def test_a_service_with_workers_has_its_own_pool_and_the_others_share_one(scene: Scene) -> None:
    one, two, three, four = scene.ports(4)
    server = scene.server()
    proxy = scene.start(
        service(one, server),
        service(two, server, workers=2),
        service(three, server, workers=1),
        service(four, server),
        workers=3,
    )
    proxy.wait_for_workers(6, "idle")
    assert len(pool_of(proxy, two)) == 2
    assert len(pool_of(proxy, three)) == 1
    assert len(common_pool(proxy)) == 3


@pytest.mark.hybrid_only  # no transport has a part in it
def test_services_that_all_have_workers_of_their_own_leave_no_common_pool(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    proxy = scene.start(service(one, server, workers=2), service(two, server, workers=3))
    proxy.wait_for_workers(5, "idle")
    assert common_pool(proxy) == []


def test_nobody_can_take_the_places_of_a_service_with_workers_of_its_own(scene: Scene) -> None:
    shared, own = scene.ports(2)
    held = scene.server(silent)
    proxy = scene.start(
        service(shared, held), service(own, scene.server(letter(b"A")), workers=1), workers=2
    )
    clients = [proxy.connect(shared) for _ in range(20)]
    held.wait_for_connections(2)
    for _ in range(10):
        assert letter_at(proxy, own) == b"A"
    assert len(held.accepted) == 2
    for client in clients:
        client.close()


def test_one_service_may_have_all_places_of_the_common_pool(scene: Scene) -> None:
    one, two = scene.ports(2)
    held, server = scene.server(silent), scene.server(letter(b"B"))
    proxy = scene.start(service(one, held), service(two, server), workers=3)
    clients = [proxy.connect(one) for _ in range(3)]
    held.wait_for_connections(3)
    with proxy.connect(two) as waits:
        waits.sendall(b"?")
        proxy.wait_for_workers(3, " -> ")
        assert not server.accepted
        clients[0].close()
        assert waits.recv(1) == b"B"
    for client in clients[1:]:
        client.close()


def test_no_listener_of_a_pool_starves_while_another_is_always_busy(scene: Scene) -> None:
    ports = scene.ports(4)
    proxy = scene.start(*(service(port, scene.server(letter(b"A"))) for port in ports), workers=1)
    # The first has many clients waiting by the time that the others have one.
    holder = proxy.connect(ports[0])
    assert say(holder) == b"A"
    crowd = [proxy.connect(ports[0]) for _ in range(200)]
    for client in crowd:
        client.sendall(b"?")
        client.shutdown(socket.SHUT_WR)
    holder.close()
    for port in ports[1:]:
        assert letter_at(proxy, port) == b"A"
    # Served in turn, not after all the others.
    assert nothing_came(crowd[-1])
    for client in crowd:
        assert client.recv(1) == b"A"
        client.close()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_options_of_the_command_line_are_the_defaults_of_each_service(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(silent)
    proxy = scene.start(
        service(one, server),
        service(two, server, idle_timeout=0),
        options=["--idle-timeout", "0.3"],
    )
    with proxy.connect(two) as lasting:
        server.wait_for_connections(1)
        with proxy.connect(one) as client:
            assert end_of(client) == b""
        proxy.log.wait_for("idle timeout")
        assert nothing_came(lasting)


@pytest.mark.hybrid_only  # the one service that listens on a Unix socket needs no other transport
def test_a_service_may_have_a_path_of_its_own(scene: Scene, tmp_path: Path) -> None:
    one, two = scene.ports(2)
    proxy = scene.start(
        service(one, scene.server(letter(b"A"))),
        service(two, scene.server(letter(b"B")), uds_path=str(tmp_path / "other")),
    )
    assert letter_at(proxy, one) == b"A"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / f"other_{two}"))
        assert say(client) == b"B"


def test_sigterm_closes_all_services_and_lets_live_connections_end(scene: Scene) -> None:
    ports = scene.ports(3)
    server = scene.server()
    proxy = scene.start(
        *(service(port, server) for port in ports[:2]), service(ports[2], server, workers=2)
    )
    clients = [proxy.connect(port) for port in ports]
    for client in clients:
        exchange(client, b"before")
    proxy.send(signal.SIGTERM)
    proxy.wait_for_workers(3)
    for port in ports:
        wait_until(lambda port=port: is_refused(proxy, port), "new clients are refused")  # type: ignore[misc]
    for client in clients:
        assert exchange(client, b"after") == b"after"
        assert not proxy.has_ended()
        client.close()
    assert proxy.wait(timeout=2) == os.EX_OK


def test_a_killed_master_leaves_free_ports_and_live_connections(scene: Scene) -> None:
    ports = scene.ports(3)
    services = [service(port, scene.server()) for port in ports]
    services[2]["workers"] = 2
    proxy = scene.start(*services)
    pids = proxy.children()
    with proxy.connect(ports[0]) as live, proxy.connect(ports[2]) as other:
        exchange(live, b"before")
        exchange(other, b"before")
        proxy.wait_for_workers(2, " -> ")
        proxy.send(signal.SIGKILL)
        proxy.wait()
        for port in ports:
            wait_until(lambda port=port: is_refused(proxy, port), "the port is free")  # type: ignore[misc]
        again = scene.start(*services)
        assert exchange(live, b"after") == b"after"
        assert exchange(other, b"after") == b"after"
        for port in ports:
            with again.connect(port) as client:
                assert exchange(client, b"x") == b"x"
    wait_until(lambda: not any(map(processes.is_alive, pids)), "no process is left")


def test_an_idle_proxy_of_many_services_makes_no_system_call(scene: Scene) -> None:
    ports = scene.ports(5)
    server = scene.server()
    proxy = scene.start(
        *(service(port, server) for port in ports[:3]),
        *(service(port, server, workers=1) for port in ports[3:]),
        workers=2,
        # Without a service manager, which wants to hear of it.
        environment=None,
    )
    pids = [*proxy.wait_for_workers(4, "idle"), proxy.pid]
    wait_until(lambda: all(processes.state(pid) == "S" for pid in pids), "all sleep")
    before = wait_until(lambda: _settled(pids), "nothing happens any more")
    try:
        wait_until(lambda: _switches(pids) != before, "a process has woken", 2)
    except AssertionError:
        return
    pytest.fail("a process has woken")


def _switches(pids: List[int]) -> List[int]:
    return [processes.context_switches(pid) for pid in pids]


def _settled(pids: List[int]) -> List[int]:
    """The counts of switches, once they have stayed the same for a moment."""
    before = _switches(pids)
    try:
        wait_until(lambda: _switches(pids) != before, "one more", 0.3)
    except AssertionError:
        return before
    return []
