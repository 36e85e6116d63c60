"""What a client of the proxy sees."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from typing import Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.clients import answers, end_of
from tests.support.processes import title
from tests.support.program import ID
from tests.support.servers import exchange, read_all, read_exactly, silent
from tests.support.timing import SLOWNESS, at_full_length, wait_until

MIB = 1 << 20


@pytest.mark.tcp_too
def test_bytes_go_to_the_endpoint_and_back(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    with proxy.connect() as client:
        assert exchange(client, b"hello") == b"hello"


@pytest.mark.tcp_too
def test_what_the_endpoint_says_first_reaches_the_client(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(lambda connection: connection.sendall(b"220 ready\r\n")))
    with proxy.connect() as client:
        assert read_exactly(client, 11) == b"220 ready\r\n"


@pytest.mark.tcp_too
def test_a_client_that_half_closes_gets_the_reply_that_follows(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    def answer_at_the_end(connection: socket.socket) -> None:
        request = read_all(connection)
        connection.sendall(b"got %d" % len(request))
        connection.close()

    proxy = start_proxy(start_server(answer_at_the_end))
    with proxy.connect() as client:
        client.sendall(b"x" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"got 1000"


@pytest.mark.tcp_too
def test_an_endpoint_that_half_closes_still_reads_what_the_client_sends(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    received = []
    done = threading.Event()

    def end_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        received.append(read_all(connection))
        done.set()

    proxy = start_proxy(start_server(end_first))
    with proxy.connect() as client:
        assert read_all(client) == b"bye"
        client.sendall(b"and thanks")
    assert done.wait(10 * SLOWNESS)
    assert received == [b"and thanks"]


@pytest.mark.tcp_too
def test_20_mib_echoed_and_then_half_closed_arrive_whole_every_time(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    data = os.urandom(20 * MIB)
    for _ in range(int(at_full_length(100, 25)) if SLOWNESS == 1 else 5):
        with proxy.connect() as client:
            sender = threading.Thread(target=_send_and_half_close, args=(client, data))
            sender.start()
            assert read_all(client) == data
            sender.join()


def _send_and_half_close(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


@pytest.mark.tcp_too
def test_an_endpoint_that_writes_32_mib_before_it_reads_does_not_deadlock(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    def write_first(connection: socket.socket) -> None:
        connection.sendall(bytes(32 * MIB))
        connection.sendall(b"got %d" % len(read_exactly(connection, 4 * MIB)))
        connection.shutdown(socket.SHUT_WR)

    proxy = start_proxy(start_server(write_first))
    with proxy.connect() as client:
        sender = threading.Thread(target=client.sendall, args=(bytes(4 * MIB),))
        sender.start()
        answer = read_all(client)
        sender.join()
    assert answer[32 * MIB :] == b"got %d" % (4 * MIB)


@pytest.mark.tcp_too
def test_more_clients_than_workers_are_served_in_turn(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    clients = [proxy.connect() for _ in range(20)]
    for number, client in enumerate(clients):
        message = b"client %d" % number
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == message
        client.close()


def test_no_more_connections_reach_the_endpoint_than_there_are_workers(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=2)
    clients = [proxy.connect() for _ in range(5)]
    server.wait_for_connections(2)
    proxy.wait_for_workers(2, " -> ")
    assert len(server.accepted) == 2
    clients[0].close()
    server.wait_for_connections(3)
    for client in clients[1:]:
        client.close()


@pytest.mark.tcp_too
def test_an_endpoint_that_refuses_closes_the_client_and_is_logged(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, workers=1)
    server.close()
    assert not answers(proxy)
    lines = proxy.log.wait_for("cannot connect to")
    assert f"127.0.0.1:{server.port}: Connection refused" in lines[0]
    start_server(port=server.port)
    with proxy.connect() as client:
        assert exchange(client, b"again") == b"again"


@pytest.mark.tcp_too
def test_a_connection_ends_with_one_line_that_tells_all_about_it(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server)
    with proxy.connect() as client:
        exchange(client, b"12345")
    line = proxy.log.wait_for(" ended: ")[0]
    assert re.search(
        rf"info worker \d: {ID}{proxy.transport.peer_pattern} -> 127\.0\.0\.1:{server.port} ended: "
        r"5 bytes up, 5 bytes down, \d+\.\d{3} s, client closed$",
        line,
    )


@pytest.mark.tcp_too
def test_ps_tells_what_every_process_does(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, workers=2)
    proxy.wait_for_workers(2, "idle")
    with proxy.connect() as client:
        exchange(client, b"x")
        busy = proxy.wait_for_workers(1, " -> ")
        assert title(proxy.pid) == (
            f"vsock-proxy: master {proxy.transport.place} -> 127.0.0.1:{server.port}"
        )
        assert re.fullmatch(
            rf"vsock-proxy: worker \d \[{proxy.transport.peer_pattern} -> "
            rf"127\.0\.0\.1:{server.port}\]",
            title(busy[0]),
        )
    proxy.wait_for_workers(2, "idle")


@pytest.mark.tcp_too
@pytest.mark.hybrid_only  # a vsock socket that is closed with unread data ends plainly
def test_a_client_reset_is_a_reset_at_the_endpoint(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server)
    client = proxy.connect()
    connection = server.wait_for_connections(1)[0]
    connection.sendall(b"unread")
    wait_until(lambda: client.recv(6, socket.MSG_PEEK) == b"unread", "the data is there")
    client.close()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


@pytest.mark.tcp_too
def test_an_idle_timeout_ends_a_silent_connection(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, "--idle-timeout", "0.2")
    with proxy.connect() as client:
        assert end_of(client) == b""
    assert proxy.log.wait_for("idle timeout")


def test_traffic_in_one_direction_keeps_a_connection_from_being_idle(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    received = threading.Event()

    def count(connection: socket.socket) -> None:
        read_exactly(connection, 10)
        received.set()

    proxy = start_proxy(start_server(count), "--idle-timeout", str(0.5 * SLOWNESS))
    pause = threading.Event()
    with proxy.connect() as client:
        for _ in range(10):
            client.sendall(b"x")
            pause.wait(0.1 * SLOWNESS)
        assert received.wait(5 * SLOWNESS)
    assert not proxy.log.matching("idle timeout")


@pytest.mark.parametrize("options", [(), ("-4",)], ids=["both families", "IPv4"])
def test_an_endpoint_that_is_ipv4_mapped_into_ipv6_is_served(
    options: Tuple[str, ...], start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy((f"::ffff:{server.host}", server.port), *options, workers=1)
    assert all(answers(proxy) for _ in range(3))
    assert not proxy.log.matching("warning|error")


def test_neither_the_log_nor_a_title_has_anything_of_what_is_relayed(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), "--log-level", "debug")
    with proxy.connect() as client:
        assert exchange(client, b"password") == b"password"
        proxy.send(signal.SIGUSR1)
        proxy.log.wait_for("relaying")
        assert "password" not in " ".join(proxy.titles())
    proxy.log.wait_for(" ended: 8 bytes up")
    proxy.send(signal.SIGTERM)
    proxy.wait()
    proxy.log.join()
    assert proxy.log.matching("password") == []
