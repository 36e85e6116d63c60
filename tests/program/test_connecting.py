"""While a worker connects: what it sees of its client and its master, and what is seen of it."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import answers, end_of, is_refused
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.program import ID, Proxy
from tests.support.servers import answer_at_the_end, exchange, read_all, silent
from tests.support.timing import SLOWNESS, let_pass, wait_until
from vsock_proxy.settings import Endpoint

GONE = "closed: it had gone before there was a connection"
CONNECTING = "connecting ["


@pytest.fixture(params=["TCP", "a VMM", "a VMM whose queue is full"])
def mute_endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tuple[str, int]]:
    """An endpoint that does not answer."""
    path = str(tmp_path / "vm")
    is_tcp = request.param == "TCP"
    with socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if is_tcp else path)
        listener.listen(100 if request.param == "a VMM" else 0)
        with socket.socket(listener.family) as first:
            # Where it fills the queue, the next one's SYN is lost, or connecting fails with EAGAIN.
            first.connect(listener.getsockname())
            yield listener.getsockname() if is_tcp else (f"unix:{path}", 5000)


def stop_worker(proxy: Proxy) -> int:
    """Stop the only worker, which is idle; returns its pid."""
    (worker,) = proxy.wait_for_workers(1, "idle")
    processes.stop(worker)
    return worker


def gone(proxy: Proxy) -> str:
    """What the totals say of clients that had gone."""
    board.ask(proxy)
    return board.totals(proxy).split("), ")[1].split(", ")[0]


# What is seen of it


def test_a_worker_that_connects_for_a_while_says_so_in_its_title(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy
) -> None:
    proxy = start_proxy(mute_endpoint, workers=1)
    with proxy.connect() as client:
        client.sendall(b"x")
        (worker,) = proxy.wait_for_workers(1, CONNECTING)
        assert processes.title(worker).endswith(f" -> {Endpoint(*mute_endpoint)}]")


def test_after_connecting_the_title_is_that_of_what_comes_next(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy
) -> None:
    proxy = start_proxy(mute_endpoint, "--connect-timeout", "0.3", workers=1)
    with proxy.connect() as client:
        proxy.wait_for_workers(1, CONNECTING)
        assert end_of(client) == b""
    proxy.wait_for_workers(1, "idle")


def test_a_worker_that_is_to_end_and_still_connects_has_no_endpoint_yet(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy
) -> None:
    proxy = start_proxy(mute_endpoint, workers=1)
    with proxy.connect():
        proxy.wait_for_workers(1, CONNECTING)
        proxy.send(signal.SIGTERM)
        wait_until(lambda: states(proxy) == [("draining", "-")], "draining is told")


def test_a_worker_that_is_to_end_stays_so_when_its_client_half_closes(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=1)
    with proxy.connect() as client:
        endpoint = server.wait_for_connections(1)[0]
        proxy.send(signal.SIGTERM)
        wait_until(lambda: states(proxy) == [("draining", "127.0.0.1")], "draining is told")
        client.shutdown(socket.SHUT_WR)
        assert end_of(endpoint) == b""
        assert states(proxy) == [("draining", "127.0.0.1")]


def test_a_worker_that_has_ended_is_not_called_idle(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    with proxy.connect() as client:
        exchange(client, b"x")
        proxy.send(signal.SIGTERM)
        wait_until(
            lambda: sorted(states(proxy)) == [("absent", "-"), ("draining", "127.0.0.1")],
            "one has ended",
        )


def states(proxy: Proxy) -> List[Tuple[str, str]]:
    """What the workers do, and to where they are connected."""
    return [(row.state, row.endpoint) for row in board.ask(proxy)]


# The client goes away


def test_clients_that_go_away_do_not_hold_their_workers(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy
) -> None:
    proxy = start_proxy(mute_endpoint, "--connect-timeout", "30", workers=2)
    clients = [proxy.connect() for _ in range(10)]
    proxy.wait_for_workers(2, CONNECTING)
    for client in clients:
        client.close()
    proxy.wait_for_workers(2, "idle", timeout=3)
    wait_until(lambda: gone(proxy).startswith("10 "), "all are counted")


def test_the_log_says_that_a_client_went_while_its_worker_connected(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy
) -> None:
    proxy = start_proxy(mute_endpoint, workers=1)
    with proxy.connect():
        proxy.wait_for_workers(1, CONNECTING)
    line = proxy.log.wait_for(f" info worker 1: {ID}{proxy.transport.peer_pattern} {GONE}")[0]
    assert line.endswith(f" to {Endpoint(*mute_endpoint)}")


def test_a_client_that_half_closes_and_then_goes_frees_its_worker(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy
) -> None:
    proxy = start_proxy(mute_endpoint, "--connect-timeout", "30", workers=1)
    with proxy.connect() as client:
        client.shutdown(socket.SHUT_WR)
        proxy.wait_for_workers(1, CONNECTING)
    proxy.wait_for_workers(1, "idle", timeout=3)
    assert gone(proxy).startswith("1 ")


def test_clients_that_go_before_their_turn_cost_the_endpoint_nothing(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, workers=1)
    worker = stop_worker(proxy)
    for _ in range(100):
        proxy.connect().close()
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: gone(proxy).startswith("100 "), "all are counted")
    assert not server.accepted
    assert answers(proxy)


def test_a_client_that_has_gone_but_left_bytes_is_served(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    received: List[bytes] = []
    server = start_server(lambda connection: received.append(read_all(connection)))
    proxy = start_proxy(server, workers=1)
    worker = stop_worker(proxy)
    with proxy.connect() as client:
        client.sendall(b"the last words")
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: received == [b"the last words"], "they arrive")


def test_a_worker_connects_for_a_client_that_went_and_left_bytes(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy
) -> None:
    proxy = start_proxy(mute_endpoint, "--connect-timeout", "2.5", workers=1)
    with proxy.connect() as client:
        proxy.wait_for_workers(1, CONNECTING)
        client.sendall(b"the last words")
    proxy.log.wait_for("cannot connect to .*: no answer in time")
    assert not proxy.log.matching(GONE)


@pytest.mark.parametrize("words", [b"", b"words"], ids=["silent", "spoken"])
def test_a_client_that_half_closed_before_its_turn_is_served(
    words: bytes, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(answer_at_the_end), workers=1)
    worker = stop_worker(proxy)
    with proxy.connect() as client:
        client.sendall(words)
        client.shutdown(socket.SHUT_WR)
        os.kill(worker, signal.SIGCONT)
        assert read_all(client) == b"you said " + words


def test_a_client_that_half_closed_waits_for_an_endpoint_that_is_slow(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    """Each SYN is lost until the queue has room, which the kernel finds out after a second."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            proxy = start_proxy(listener.getsockname(), "--connect-timeout", "30", workers=1)
            with proxy.connect() as client:
                client.shutdown(socket.SHUT_WR)
                proxy.wait_for_workers(1, CONNECTING)
                let_pass(1.2, why="the worker asks once more whether its client is there")
                listener.accept()[0].close()
                endpoint, _ = listener.accept()
                with endpoint:
                    endpoint.sendall(b"late")
                assert read_all(client) == b"late"


# The master goes away


def test_a_worker_that_connects_frees_the_port_once_the_master_is_killed(
    mute_endpoint: Tuple[str, int], start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(mute_endpoint, "--connect-timeout", str(4 * SLOWNESS), workers=1)
    with proxy.connect() as client, proxy.connect() as queued:
        client.sendall(b"x")
        (worker,) = proxy.wait_for_workers(1, CONNECTING)
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: is_refused(proxy), "the port is free", 1)
        again = start_proxy(start_server())
        with again.connect() as other:
            assert exchange(other, b"x") == b"x"
        # Nobody will come for who had queued.
        assert end_of(queued) == b""
        assert processes.is_alive(worker)
        assert end_of(client) == b""
    wait_until(lambda: not processes.is_alive(worker), "it ends with its connection", 2)


def test_an_orphan_serves_its_client_to_the_end_and_no_other(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, workers=1)
    worker = stop_worker(proxy)
    with proxy.connect() as client:
        proxy.send(signal.SIGKILL)
        proxy.wait()
        os.kill(worker, signal.SIGCONT)
        # It wakes to a client and to the end of the master, and is to heed this first.
        assert end_of(client) == b""
    wait_until(lambda: not processes.is_alive(worker), "it is gone")
    assert not server.accepted


# An endpoint on this machine where nobody listens


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Namespace]:
    """One with so few local ports that a socket soon connects to itself."""
    namespace = Namespace(tmp_path)
    namespace.run("sysctl", "-qw", f"net.ipv4.ip_local_port_range={FIRST_PORT} {FIRST_PORT + 9}")
    namespace.run("ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1")
    namespace.run("ip", "address", "add", "fe80::2/64", "dev", "cable0", "nodad")
    for name in ("cable0", "cable1"):
        namespace.run("ip", "link", "set", name, "up")
    yield namespace
    namespace.close()


FIRST_PORT = 40_000
# connect() prefers the even ones (__inet_hash_connect() in net/ipv4/inet_hashtables.c).
PORT = FIRST_PORT + 4
MAPPED, WITH_ZONE = "::ffff:127.0.0.1", "fe80::2%cable0"
OWN_ADDRESSES = ["127.0.0.1", "::1", "192.0.2.9", "2001:db8::9", MAPPED, WITH_ZONE]


@needs_namespace
@pytest.mark.hybrid_only
@pytest.mark.parametrize("host", OWN_ADDRESSES)
def test_a_port_of_this_machine_where_nobody_listens_refuses(
    host: str, network: Namespace, start_proxy: StartProxy
) -> None:
    network.add_address("192.0.2.9/32")
    network.add_address("2001:db8::9/128")
    proxy = start_proxy((host, PORT), workers=1, wrapper=network.wrapper)
    assert not any(answers(proxy) for _ in range(100))
    proxy.log.wait_for("cannot connect to .*: Connection refused")
    # A client is closed a moment before it is counted.
    wait_until(lambda: "100 failed (100 refused" in board.totals_now(proxy), "all are counted")


@needs_namespace
@pytest.mark.hybrid_only
def test_a_server_may_listen_where_a_moment_before_nobody_did(
    network: Namespace, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(("127.0.0.1", PORT), workers=1, wrapper=network.wrapper)
    assert not any(answers(proxy) for _ in range(50))

    def listen() -> socket.socket:
        # Without SO_REUSEADDR, for which a connection that is ending would be in the way.
        listener = socket.socket()
        listener.bind(("127.0.0.1", PORT))
        listener.listen()
        return listener

    with network.call(listen) as listener, proxy.connect() as client:
        endpoint, _ = listener.accept()
        with endpoint:
            client.sendall(b"x")
            assert endpoint.recv(1) == b"x"


@needs_namespace
@pytest.mark.hybrid_only
def test_an_endpoint_that_listens_on_such_a_port_here_is_served(
    network: Namespace, start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = network.call(lambda: start_server(port=PORT))
    proxy = start_proxy(server, workers=2, wrapper=network.wrapper)
    assert all(answers(proxy) for _ in range(5))


# No local port is left


@needs_namespace
@pytest.mark.hybrid_only
def test_where_no_local_port_is_left_the_log_says_so(
    network: Namespace, start_proxy: StartProxy, start_server: StartServer
) -> None:
    network.add_address("192.0.2.9/32")
    server = network.call(lambda: start_server(silent, host="192.0.2.9", port=443))
    proxy = start_proxy(server, workers=12, wrapper=network.wrapper)
    clients = [proxy.connect() for _ in range(11)]
    line = proxy.log.wait_for("cannot connect to")[0]
    assert line.endswith(": 192.0.2.9:443: Cannot assign requested address")
    for client in clients:
        client.close()
