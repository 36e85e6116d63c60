"""Several services as an operator sees them: titles, log lines, the table and the status."""

from __future__ import annotations

import os
import re
import signal
from typing import Dict

import pytest

from tests.program.services.conftest import Scene, either_pool
from tests.support import board, processes
from tests.support.clients import end_of
from tests.support.program import ID
from tests.support.servers import exchange, silent
from tests.support.services import letter, letter_at, names, pool_of, service
from tests.support.timing import wait_until

WATCHDOG_USEC = 200_000


# What is seen from outside


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_titles_of_many_services(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    server = scene.server()
    proxy = scene.start(
        service(one, server), service(two, server), service(three, server, workers=2), workers=3
    )
    proxy.wait_for_workers(5, "idle")
    assert processes.title(proxy.pid) == "vsock-proxy: master, 3 services"
    assert sorted(proxy.titles()) == sorted(
        [
            *(f"vsock-proxy: worker {number} idle" for number in (1, 2, 3)),
            *(f"vsock-proxy: worker {three}/{number} idle" for number in (1, 2)),
        ]
    )


@either_pool
def test_a_worker_that_relays_has_the_port_of_the_service_in_its_title(
    scene: Scene, own: bool
) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    keys = {"workers": 1} if own else {}
    proxy = scene.start(service(one, server), service(two, server, **keys), workers=1)
    name = rf"{two}/1" if own else "1"
    with proxy.connect(two) as client:
        exchange(client, b"x")
        (busy,) = proxy.wait_for_workers(1, " -> ")
        assert re.fullmatch(
            rf"vsock-proxy: worker {name} \[{two}: {proxy.transport.peer_pattern} -> "
            rf"127\.0\.0\.1:{server.port}\]",
            processes.title(busy),
        )
    wait_until(lambda: processes.title(busy) == f"vsock-proxy: worker {name} idle", "it is idle")


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("keys", [{}, {"workers": 2}], ids=["of -w", "of its own"])
def test_one_service_of_a_file_is_shown_like_one_of_the_command_line(
    scene: Scene, keys: Dict[str, object]
) -> None:
    server = scene.server()
    proxy = scene.start(service(scene.transport.port, server, **keys), workers=2)
    proxy.wait_for_workers(2, "idle")
    assert processes.title(proxy.pid) == (
        f"vsock-proxy: master {scene.transport.place} -> 127.0.0.1:{server.port}"
    )
    assert sorted(proxy.titles()) == ["vsock-proxy: worker 1 idle", "vsock-proxy: worker 2 idle"]
    with proxy.connect() as client:
        exchange(client, b"x")
        proxy.wait_for_workers(1, f"[{'unix' if scene.transport.name == 'hybrid' else '1:'}")
    (line,) = proxy.log.wait_for(" ended: ")
    assert re.search(rf"info worker \d: {ID}{proxy.transport.peer_pattern} -> 127", line)
    assert [row.worker for row in board.ask(proxy)] == ["1", "2"]
    os.kill(proxy.workers()[0], signal.SIGKILL)
    proxy.log.wait_for(r"warning master: worker \d ended, signal 9")


@pytest.mark.tcp_too
def test_the_line_of_a_connection_names_its_service(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    proxy = scene.start(service(one, server), service(two, server, workers=1), workers=1)
    for port, worker in ((one, "1"), (two, f"{two}/1")):
        with proxy.connect(port) as client:
            exchange(client, b"12345")
        (line,) = proxy.log.wait_for(rf" {port}: .* ended: ")
        assert re.search(
            rf"info worker {worker}: {ID}{port}: {proxy.transport.peer_pattern} -> "
            rf"127\.0\.0\.1:{server.port} ended: 5 bytes up, 5 bytes down, ",
            line,
        )


def test_a_connection_that_fails_names_its_service(scene: Scene) -> None:
    one, two = scene.ports(2)
    gone = scene.server()
    proxy = scene.start(service(one, scene.server()), service(two, gone), workers=1)
    gone.close()
    with proxy.connect(two) as client:
        assert end_of(client) == b""
    proxy.log.wait_for(
        rf"error worker 1: {ID}{two}: {proxy.transport.peer_pattern} closed: cannot connect to 127"
    )


@pytest.mark.tcp_too
def test_the_connection_of_a_worker_that_dies_names_its_service(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    proxy = scene.start(service(one, server), service(two, server), workers=1)
    with proxy.connect(two) as client:
        exchange(client, b"12345")
        (worker,) = proxy.wait_for_workers(1, " -> ")
        wait_until(lambda: "5 bytes down" in board.totals_now(proxy), "all is counted")
        os.kill(worker, signal.SIGKILL)
        proxy.log.wait_for("worker 1 ended, signal 9")
    (line,) = proxy.log.matching(" ended: ")
    assert re.search(rf"warning master: {ID}{two}: {proxy.transport.peer_pattern} -> ", line)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_dead_worker_of_a_services_own_pool_is_called_as_in_its_title(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server()
    proxy = scene.start(service(one, server), service(two, server, workers=1), workers=1)
    proxy.wait_for_workers(2, "idle")
    (old,) = pool_of(proxy, two)
    os.kill(old, signal.SIGKILL)
    proxy.log.wait_for(rf"worker {two}/1 ended, signal 9 .Killed.; starting another")
    wait_until(lambda: set(pool_of(proxy, two)) - {old}, "another worker")
    assert letter_at(proxy, two) == b"?"


def test_the_table_names_the_service_of_each_worker_and_counts_all(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    server = scene.server()
    proxy = scene.start(
        service(one, server), service(two, server), service(three, server, workers=1), workers=2
    )
    proxy.wait_for_workers(3, "idle")
    clients = [proxy.connect(port) for port in (two, three)]
    for client in clients:
        exchange(client, b"123")
    wait_until(lambda: "6 bytes down" in board.totals_now(proxy), "all is counted")
    rows = board.ask(proxy)
    assert [row.worker for row in rows] == ["1", "2", f"{three}/1"]
    busy = {row.service for row in rows if row.state == "relaying"}
    assert busy == {str(two), str(three)}
    assert [row.service for row in rows if row.state == "idle"] == ["-"]
    assert "2 connections served, 0 failed" in board.totals(proxy)
    for client in clients:
        client.close()


@pytest.mark.hybrid_only  # no transport has a part in it
@either_pool
def test_the_warning_that_all_are_busy_names_the_pool(scene: Scene, own: bool) -> None:
    one, two, three = scene.ports(3)
    server = scene.server(silent)
    proxy = scene.start(
        service(one, server),
        service(two, server),
        service(three, server, workers=2),
        workers=2,
    )
    port = three if own else two
    clients = [proxy.connect(port) for _ in range(2)]
    (line,) = proxy.log.wait_for("warning master: .* busy, further clients wait", timeout=5)
    if own:
        assert names(line, three)
        assert "'workers'" in line or "workers:" in line
    else:
        assert re.search(rf"\b{one}\b.*\b{two}\b|common|shared?\b", line)
        assert "-w" in line
        assert not names(line, three)
    for client in clients:
        client.close()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_start_tells_of_more_services_than_workers_in_the_common_pool(scene: Scene) -> None:
    ports = scene.ports(4)
    server = scene.server()
    proxy = scene.start(
        *(service(port, server) for port in ports[:3]),
        service(ports[3], server, workers=1),
        workers=2,
    )
    proxy.log.wait_for(r"(info|warning) master: .*3 services.*2 workers.*-w")
    assert letter_at(proxy, ports[0]) == b"?"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_no_more_services_than_workers_is_no_line(scene: Scene) -> None:
    ports = scene.ports(4)
    server = scene.server()
    proxy = scene.start(
        *(service(port, server) for port in ports[:3]),
        service(ports[3], server, workers=1),
        workers=3,
    )
    assert not proxy.log.matching(r"-w\b|warning")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_status_that_systemd_is_told_counts_services_and_all_workers(scene: Scene) -> None:
    ports = scene.ports(3)
    server = scene.server()
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": scene.file.systemd.address,
        "WATCHDOG_USEC": str(WATCHDOG_USEC),
    }
    proxy = scene.start(
        *(service(port, server) for port in ports[:2]),
        service(ports[2], server, workers=3),
        workers=4,
        environment=environment,
    )
    scene.file.systemd.wait_for(
        "^STATUS=3 services, 0 of 7 workers busy, 0 connections served, 0 failed$"
    )
    with proxy.connect(ports[0]) as client, proxy.connect(ports[2]) as other:
        exchange(client, b"x")
        exchange(other, b"x")
        scene.file.systemd.wait_for(
            "^STATUS=3 services, 2 of 7 workers busy, 2 connections served, 0 failed$"
        )


@pytest.mark.hybrid_only  # no transport has a part in it
def test_ready_is_told_when_every_service_accepts(scene: Scene) -> None:
    ports = scene.ports(6)
    server = scene.server(letter(b"A"))
    proxy = scene.start(
        *(service(port, server, workers=2) for port in ports),
        ready=False,
    )
    scene.file.systemd.wait_for("^READY=1$")
    assert [letter_at(proxy, port) for port in ports] == [b"A"] * 6
