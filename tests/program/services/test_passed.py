"""Several services, and the listening sockets that systemd holds for some of them."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import List, Tuple

import pytest

from tests.program.services.conftest import Scene
from tests.support import processes
from tests.support.clients import end_of, is_refused
from tests.support.program import Transport
from tests.support.servers import echo
from tests.support.services import letter, letter_at, pool_of, say, service
from tests.support.systemd import passing
from tests.support.timing import SLOWNESS, wait_until
from tests.support.transports import Hybrid


def held(transport: Transport, *ports: int) -> List[str]:
    """What makes the listeners of these ports ones that the proxy is passed."""
    return passing(*(_socket(transport, port) for port in ports))


def _socket(transport: Transport, port: int) -> Tuple[str, Path | str]:
    if isinstance(transport, Hybrid):
        return "unix-listener", transport.path_of(port)
    return "vsock-listener", str(port)


def test_each_passed_socket_goes_to_the_service_of_its_address(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    proxy = scene.start(
        service(one, scene.server(letter(b"A"))),
        service(two, scene.server(letter(b"B")), workers=1),
        service(three, scene.server(letter(b"C"))),
        wrapper=held(scene.transport, three, two),
    )
    assert [letter_at(proxy, port) for port in (one, two, three)] == [b"A", b"B", b"C"]


def test_a_socket_that_no_service_of_the_file_asks_for_is_exit_code_69(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    server = scene.server()
    proxy = scene.start(
        service(one, server),
        service(two, server),
        wrapper=held(scene.transport, two, three),
        ready=False,
    )
    assert proxy.wait() == os.EX_UNAVAILABLE
    assert f"{three}, but no service listens there" in proxy.log.only_line()


def test_a_client_of_a_passed_socket_is_served_once_its_service_is_back(scene: Scene) -> None:
    one, two = scene.ports(2)
    stays, goes = (service(port, scene.server(letter(b"A"))) for port in (one, two))
    proxy = scene.start(stays, goes, wrapper=held(scene.transport, one, two))
    scene.reload(proxy, stays)
    proxy.log.wait_for(rf"warning master: systemd holds .*{two}, but no service listens there now")
    with proxy.connect(two) as waits:
        waits.sendall(b"?")
        # One that changes nothing does not give the socket up.
        scene.reload(proxy)
        scene.reload(proxy, stays, goes)
        assert waits.recv(1) == b"A"
    assert letter_at(proxy, two) == b"A"


def test_a_connection_of_a_service_that_is_back_outlives_older_ones(scene: Scene) -> None:
    one, two = scene.ports(2)
    stays, goes = (service(port, scene.server(letter(b"A"))) for port in (one, two))
    proxy = scene.start(
        stays, goes, wrapper=held(scene.transport, two), options=["--drain-timeout", str(SLOWNESS)]
    )
    before = proxy.connect(two)
    assert say(before) == b"A"
    scene.reload(proxy, stays)
    scene.reload(proxy, stays, goes)
    with proxy.connect(two) as after:
        assert say(after) == b"A"
        # Its worker is then to end with it, as that of the connection from before.
        scene.reload(proxy, stays, {**goes, "idle_timeout": 900})
        assert end_of(before) == b""
        # It would end in the same moment.
        assert not select.select([after], [], [], 0.2 * SLOWNESS)[0]
        assert say(after) == b"A"
    before.close()


def test_a_removed_service_with_a_bound_socket_refuses_its_clients(scene: Scene) -> None:
    one, two = scene.ports(2)
    stays, goes = (service(port, scene.server(letter(b"A"))) for port in (one, two))
    proxy = scene.start(stays, goes, wrapper=held(scene.transport, one))
    scene.reload(proxy, stays)
    assert is_refused(proxy, two)
    assert not proxy.log.matching("systemd holds")
    assert letter_at(proxy, one) == b"A"


@pytest.mark.hybrid_only  # /proc/net/unix tells which socket a path is
def test_no_worker_holds_a_passed_socket_of_another_pool_or_of_no_service(
    scene: Scene, transport: Hybrid
) -> None:
    one, two, three = ports = transport.ports(3)
    server = scene.server(echo)
    services = [service(port, server, workers=1) for port in ports]
    proxy = scene.start(*services, wrapper=held(transport, *ports))
    sockets = {port: socket_of(transport.path_of(port)) for port in ports}
    scene.reload(proxy, services[0], {**services[1], "idle_timeout": 5})
    # Those of the pools from before may take a moment to end.
    proxy.wait_for_workers(2)
    for port in (one, two):
        (worker,) = pool_of(proxy, port)
        assert [each for each in ports if sockets[each] in processes.file_names(worker)] == [port]
    assert sockets[three] in processes.file_names(proxy.pid)


def socket_of(path: Path) -> str:
    """What a descriptor of the socket at a path is called in /proc."""
    (inode,) = {
        line.split()[6]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.endswith(f" {path}")
    }
    return f"socket:[{inode}]"


def test_a_drain_serves_nobody_who_comes_later_to_a_passed_socket(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    proxy = scene.start(
        service(one, server), service(two, server), wrapper=held(scene.transport, one, two)
    )
    with proxy.connect(one) as live:
        assert say(live) == b"A"
        proxy.send(signal.SIGTERM)
        proxy.wait_for_workers(1)
        wait_until(lambda: is_refused(proxy, two), "new clients are refused")
        assert say(live) == b"A"
    assert proxy.wait() == os.EX_OK
