"""A reload of the services: what did not change stays, and so does the listener of what did."""

from __future__ import annotations

from typing import Callable, Dict

import pytest

from tests.program.services.conftest import Scene, either_pool
from tests.support import board, processes
from tests.support.clients import end_of
from tests.support.program import ID
from tests.support.servers import silent
from tests.support.services import (
    Service,
    all_idle,
    common_pool,
    letter,
    letter_at,
    nothing_came,
    pool_of,
    say,
    service,
)
from tests.support.timing import let_pass, wait_until
from tests.support.transports import Hybrid

# What did not change is not touched


def test_a_reload_of_an_unchanged_file_replaces_no_worker(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    proxy = scene.start(service(one, server), service(two, server, workers=2), workers=3)
    before = all_idle(proxy, 5)
    with proxy.connect(one) as live:
        assert say(live) == b"A"
        for _ in range(3):
            scene.reload(proxy)
        assert say(live) == b"A"
    assert all_idle(proxy, 5) == before


@pytest.mark.hybrid_only  # no transport has a part in it
def test_another_order_and_other_words_for_the_same_replace_no_worker(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    first, second = service(one, server), service(two, server, workers=2)
    proxy = scene.start(first, second, options=["--connect-timeout", "7"], workers=3)
    before = all_idle(proxy, 5)
    scene.reload(proxy, second, {**first, "connect_timeout": 7.0})
    assert all_idle(proxy, 5) == before


CHANGES: Dict[str, Callable[[Service], Service]] = {
    "its endpoint": lambda found: {**found, "address": "127.0.0.2"},
    "its options": lambda found: {**found, "idle_timeout": 1000},
    "its workers": lambda found: {**found, "workers": 3},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_a_service_with_its_own_pool_leaves_other_pools_alone(
    scene: Scene, change: Callable[[Service], Service]
) -> None:
    shared, changed, other = scene.ports(3)
    server = scene.server(letter(b"A"), host="0.0.0.0")
    server.host = "127.0.0.1"
    services = [
        service(shared, server),
        service(changed, server, workers=2),
        service(other, server, workers=2),
    ]
    proxy = scene.start(*services, workers=2)
    all_idle(proxy, 6)
    before = {port: pool_of(proxy, port) for port in (changed, other)}
    common = common_pool(proxy)
    services[1] = change(services[1])
    scene.reload(proxy, *services)
    wait_until(lambda: not set(pool_of(proxy, changed)) & set(before[changed]), "a new pool")
    all_idle(proxy, 4 + int(str(services[1]["workers"])))
    assert pool_of(proxy, other) == before[other]
    assert common_pool(proxy) == common
    assert letter_at(proxy, changed) == b"A"


def test_a_change_in_the_common_pool_leaves_the_pool_of_a_service_alone(scene: Scene) -> None:
    changed, same, own = scene.ports(3)
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    services = [service(changed, old), service(same, old), service(own, old, workers=2)]
    proxy = scene.start(*services, workers=2)
    all_idle(proxy, 4)
    before = pool_of(proxy, own)
    services[0] = service(changed, new)
    scene.reload(proxy, *services)
    wait_until(lambda: letter_at(proxy, changed) == b"B", "the new endpoint")
    assert letter_at(proxy, same) == b"A"
    all_idle(proxy, 4)
    assert pool_of(proxy, own) == before


@pytest.mark.hybrid_only  # no transport has a part in it
def test_an_allowlist_that_permits_more_replaces_no_worker(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    services = [service(one, server), service(two, server, workers=1)]
    proxy = scene.start(*services, workers=1)
    before = all_idle(proxy, 2)
    scene.file.write(services, [(server.host, server.port), ("192.0.2.1", 443)])
    scene.reload(proxy)
    assert all_idle(proxy, 2) == before


@pytest.mark.hybrid_only  # no transport has a part in it
def test_workers_have_their_services_name_while_there_are_others(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    first, second = service(one, server, workers=2), service(two, server, workers=1)
    proxy = scene.start(first)
    before = sorted(proxy.wait_for_workers(2, "idle"))
    alone = {"vsock-proxy: worker 1 idle", "vsock-proxy: worker 2 idle"}
    assert set(proxy.titles()) == alone
    with proxy.connect(one) as live:
        assert say(live) == b"A"
        (busy,) = proxy.wait_for_workers(1, " -> ")
        scene.reload(proxy, first, second)
        (idle,) = set(before) - {busy}
        wait_until(lambda: f" {one}/" in processes.title(idle), "it has the name of its service")
    named = {f"vsock-proxy: worker {one}/{number} idle" for number in (1, 2)}
    wait_until(
        lambda: set(proxy.titles()) == {*named, f"vsock-proxy: worker {two}/1 idle"}, "all have"
    )
    proxy.log.wait_for(rf"info worker {one}/\d: {ID}{one}: .* ended: ")
    assert {row.worker for row in board.ask(proxy)} == {f"{one}/1", f"{one}/2", f"{two}/1"}
    scene.reload(proxy, first)
    wait_until(lambda: set(proxy.titles()) == alone, "they have no such name any more")
    assert sorted(proxy.workers()) == before
    with proxy.connect(one) as client:
        assert say(client) == b"A"
    proxy.log.wait_for(rf"info worker \d: {ID}unix -> ")


# A listener that stays


@pytest.mark.hybrid_only  # it is by its file that a listener can be told from another
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_listener_of_a_service_that_changes_is_kept(
    scene: Scene, transport: Hybrid, change: Callable[[Service], Service]
) -> None:
    one, two = transport.ports(2)
    server = scene.server(letter(b"A"), host="0.0.0.0")
    server.host = "127.0.0.1"
    services = [service(one, server), service(two, server, workers=1)]
    proxy = scene.start(*services, workers=1)
    inodes = [transport.path_of(port).stat().st_ino for port in (one, two)]
    scene.reload(proxy, *map(change, services))
    assert [transport.path_of(port).stat().st_ino for port in (one, two)] == inodes
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]


@pytest.mark.tcp_too
@either_pool
def test_a_client_that_waits_in_the_backlog_is_served_by_the_new_workers(
    scene: Scene, own: bool
) -> None:
    one, two = scene.ports(2)
    keys = {"workers": 1} if own else {}
    held, new = scene.server(silent), scene.server(letter(b"B"))
    proxy = scene.start(service(one, held), service(two, held, **keys), workers=1)
    with proxy.connect(two) as holder, proxy.connect(two) as waits:
        held.wait_for_connections(1)
        waits.sendall(b"?")
        scene.reload(proxy, service(one, held), service(two, new, **keys))
        assert waits.recv(1) == b"B"
        # The one that was there has noticed nothing.
        assert nothing_came(holder)
    assert len(held.accepted) == 1


@either_pool
def test_a_new_endpoint_serves_new_clients_and_leaves_live_connections(
    scene: Scene, own: bool
) -> None:
    one, two = scene.ports(2)
    keys = {"workers": 2} if own else {}
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    # A pool that was changed is no service that is gone: its connections have all the time.
    proxy = scene.start(
        service(one, old), service(two, old, **keys), workers=2, options=["--drain-timeout", "0.3"]
    )
    with proxy.connect(two) as live:
        assert say(live) == b"A"
        scene.reload(proxy, service(one, old), service(two, new, **keys))
        wait_until(lambda: letter_at(proxy, two) == b"B", "the new endpoint")
        for _ in range(20):
            assert letter_at(proxy, two) == b"B"
            assert letter_at(proxy, one) == b"A"
        let_pass(1.0, why="the drain timeout, which is shorter, must not end the connection")
        assert say(live) == b"A"
    all_idle(proxy, 4 if own else 2)


def test_a_changed_option_holds_for_new_connections(scene: Scene) -> None:
    server = scene.server(silent)
    one, two = scene.ports(2)
    proxy = scene.start(service(one, server), service(two, server), workers=2)
    with proxy.connect(one) as old:
        server.wait_for_connections(1)
        scene.reload(proxy, service(one, server, idle_timeout=0.2), service(two, server))
        with proxy.connect(one) as new:
            assert end_of(new) == b""
        proxy.log.wait_for("idle timeout")
        assert nothing_came(old)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)], ids=["more", "fewer"])
def test_another_number_of_workers_is_how_many_serve_from_now_on(
    scene: Scene, before: int, after: int
) -> None:
    one, two = scene.ports(2)
    server = scene.server(silent)
    proxy = scene.start(service(one, server), service(two, server, workers=before), workers=1)
    with proxy.connect(two) as live:
        server.wait_for_connections(1)
        scene.reload(proxy, service(one, server), service(two, server, workers=after))
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


# What is said of it


@pytest.mark.hybrid_only  # no transport has a part in it
def test_more_services_than_workers_after_a_reload_is_said_once(scene: Scene) -> None:
    ports = scene.ports(4)
    server = scene.server(letter(b"A"))
    proxy = scene.start(*(service(port, server) for port in ports[:2]), workers=2)
    few = r"warning master: 3 services share 2 workers: .*-w"
    scene.reload(proxy, *(service(port, server) for port in ports[:3]))
    proxy.log.wait_for(few)
    # That changes another pool.
    shared = [service(port, server) for port in ports[:3]]
    scene.reload(proxy, *shared, service(ports[3], server, workers=1))
    scene.reload(proxy)
    assert len(proxy.log.matching(few)) == 1
