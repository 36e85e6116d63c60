"""Clients on TCP: what they are called, and how their connections end."""

from __future__ import annotations

import os
import re
import select
import signal
from typing import Callable

import pytest

from tests.conftest import StartProxy, StartServer
from tests.program.listen_tcp.conftest import connect, is_refused
from tests.support import board, tcp_table
from tests.support.means import need_address
from tests.support.program import ID, Proxy
from tests.support.servers import UnixServer, exchange, read_exactly, silent
from tests.support.services import ServicesFile, letter, service
from tests.support.sides import reset
from tests.support.tcp_table import KEEPALIVE_TIMER
from tests.support.timing import SLOWNESS

pytestmark = pytest.mark.hybrid_only  # it is TCP that is tested here

# Who comes


@pytest.mark.parametrize(
    ("address", "peer"), [("127.0.0.1", r"127\.0\.0\.1:{}"), ("::1", r"\[::1\]:{}")]
)
def test_a_client_is_called_by_its_address_and_port_everywhere(
    listen: Callable[..., Proxy], start_server: StartServer, port: int, address: str, peer: str
) -> None:
    proxy = listen(start_server(), "::", workers=1)
    with connect(address, port) as client:
        name = peer.format(client.getsockname()[1])
        assert exchange(client, b"x") == b"x"
        proxy.wait_for_workers(1, f"[{name} -> ".replace("\\", ""))
        assert [re.fullmatch(name, row.client) for row in board.ask(proxy)] != [None]
    proxy.log.wait_for(rf"info worker 1: {ID}{name} -> .* ended: 1 bytes up, 1 bytes down")


def test_services_with_one_port_are_called_by_their_addresses(
    launch: StartProxy, services_file: ServicesFile, start_server: StartServer, port: int
) -> None:
    need_address("::1")
    server = start_server(letter(b"A"))
    services_file.write(
        [service(port, server, listen_tcp=address) for address in ("127.0.0.1", "::1")]
    )
    proxy = launch("--config", str(services_file.path))
    with connect("::1", port) as client:
        client.sendall(b"?")
        assert read_exactly(client, 1) == b"A"
        name = rf"\[::1\]:{port}: \[::1\]:{client.getsockname()[1]}"
    proxy.log.wait_for(rf"info worker \d: {ID}{name} -> .* ended: ")


def test_a_listener_on_another_address_is_what_a_reload_adds(
    start_services: StartProxy, services_file: ServicesFile, start_server: StartServer, port: int
) -> None:
    server = start_server(letter(b"A"))
    proxy = start_services(service(port, server, listen_tcp="127.0.0.1"))
    services_file.reload(proxy, service(port, server, listen_tcp="127.0.0.2"))
    assert is_refused("127.0.0.1", port)
    with connect("127.0.0.2", port) as client:
        client.sendall(b"?")
        assert read_exactly(client, 1) == b"A"


# How they end


def test_a_client_that_resets_is_a_reset_at_the_endpoint(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    server = start_server(silent)
    proxy = listen(server, "127.0.0.1")
    client = connect("127.0.0.1", port)
    endpoint = server.wait_for_connections(1)[0]
    reset(client)
    with pytest.raises(ConnectionResetError):
        endpoint.recv(1)
    proxy.log.wait_for(r" ended: .*, client reset \(Connection reset by peer\)$")


def test_a_client_whose_endpoint_cannot_be_reached_is_reset(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    server = start_server()
    listen(server, "127.0.0.1")
    server.close()
    # The proxy may be quick enough to do so before the client knows of its connection.
    with pytest.raises(ConnectionResetError), connect("127.0.0.1", port) as client:
        client.recv(1)


def test_a_client_whose_worker_dies_while_it_connects_is_reset(
    listen: Callable[..., Proxy], start_vmm: StartServer, port: int
) -> None:
    proxy = listen(start_vmm(silent, UnixServer), "127.0.0.1", workers=1)
    with connect("127.0.0.1", port) as client:
        client.sendall(b"x")
        (worker,) = proxy.wait_for_workers(1, "connecting [")
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.log.wait_for(r" closed: its worker died before there was a connection to unix:")


def test_a_client_that_is_gone_is_noticed_once_the_endpoint_sends(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    server = start_server(silent)
    proxy = listen(server, "127.0.0.1", workers=1)
    connect("127.0.0.1", port).close()
    endpoint = server.wait_for_connections(1)[0]
    endpoint.settimeout(20 * SLOWNESS)
    assert endpoint.recv(1) == b""
    endpoint.sendall(b"x")
    poll = select.poll()
    poll.register(endpoint, 0)
    assert poll.poll(20_000 * SLOWNESS)
    proxy.log.wait_for(r" ended: .*, client reset \(")


def test_a_lasting_client_is_asked_now_and_then_whether_it_is_there(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    proxy = listen(start_server(), "127.0.0.1", workers=1)
    with connect("127.0.0.1", port) as client:
        exchange(client, b"x")
        proxy.wait_for_workers(1, " -> ")
        ends = port, client.getsockname()[1]
        timers = [row.timer for row in tcp_table.rows() if (row.near, row.far) == ends]
    assert timers == [KEEPALIVE_TIMER]
