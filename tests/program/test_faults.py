"""Workers, clients and endpoints that die, vanish or stand still: the others go on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import answers, end_of
from tests.support.pattern import BLOCK, MIB, TRANSFER, is_whole, send_pattern
from tests.support.program import Proxy
from tests.support.servers import CHUNK, echo, read_all, read_exactly, silent
from tests.support.timing import AT_ONCE, SLOWNESS, at_full_length, is_within, let_pass, wait_until

# Workers that die or stand still


@pytest.mark.alone
def test_a_worker_killed_in_mid_transfer_costs_only_its_connection(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_pattern))
    others = [proxy.connect() for _ in range(2)]
    firsts = [read_exactly(client, 1000) for client in others]
    busy = proxy.wait_for_workers(2, " -> ")
    victim = proxy.connect()
    received = len(read_exactly(victim, 1000))
    (worker,) = set(proxy.wait_for_workers(3, " -> ")) - set(busy)
    os.kill(worker, signal.SIGKILL)
    try:
        received += len(read_all(victim))
    except ConnectionResetError:
        pass
    assert received < TRANSFER
    for first, client in zip(firsts, others):
        assert is_whole(client, first)
    for client in (victim, *others):
        client.close()
    board.wait_until_idle(proxy, 4)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_a_worker_that_is_killed_is_replaced_within_250_ms(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)

    def replace() -> float:
        (old,) = proxy.wait_for_workers(1, "idle")
        began = time.monotonic()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: set(proxy.workers("idle")) - {old}, "another worker")
        return time.monotonic() - began

    assert is_within(0.25, replace)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_endpoint_sees_that_an_upload_is_cut_off_when_the_worker_dies(
    number: signal.Signals, start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=1)
    (worker,) = proxy.wait_for_workers(1, "idle")
    with proxy.connect() as client:
        client.sendall(bytes(100_000))
        endpoint = server.wait_for_connections(1)[0]
        # At once: the connection has not lasted a moment.
        read_exactly(endpoint, 100_000)
        os.kill(worker, number)
        with pytest.raises(ConnectionResetError):
            endpoint.recv(1)
        # Neither vsock nor a Unix socket has a reset.
        assert end_of(client) == b""


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_workers_that_die_at_once_are_replaced_at_most_10_times_a_second(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    seen = set(proxy.wait_for_workers(4))
    began = time.monotonic()
    while time.monotonic() - began < 2:
        for pid in proxy.workers():
            seen.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    forks = len(seen) - 4
    # Ten may be in the first moment, and ten in each second from there on.
    assert 10 < forks <= 10 + 10 * (time.monotonic() - began)
    proxy.log.wait_for(r"starting another in \d\.\d s, too many have ended")
    board.wait_until_idle(proxy, 4)
    assert answers(proxy)


def test_while_one_worker_stands_still_the_others_go_on_accepting(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    for stopped in proxy.wait_for_workers(4, "idle")[:3]:
        processes.stop(stopped)
        answer_promptly(proxy, at_full_length(10))
        os.kill(stopped, signal.SIGCONT)
    board.wait_until_idle(proxy, 4)


def answer_promptly(proxy: Proxy, seconds: float) -> None:
    """Be an undisturbed client for so long, a hundred times a second."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert answers(proxy)
        assert time.monotonic() - began < AT_ONCE * SLOWNESS
        let_pass(0.01, why="a client comes a hundred times a second")


def test_a_worker_that_stood_still_in_mid_transfer_ends_it_whole(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_pattern))
    with proxy.connect() as client:
        first = read_exactly(client, 1000)
        (worker,) = proxy.wait_for_workers(1, " -> ")
        processes.stop(worker)
        with proxy.connect() as other:
            assert read_exactly(other, 1000)
        os.kill(worker, signal.SIGCONT)
        assert is_whole(client, first)


# Clients and endpoints that vanish or stall


def test_a_client_that_leaves_a_silent_endpoint_frees_its_worker_at_once(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=1)

    def vanish() -> float:
        client = proxy.connect()
        client.sendall(b"a request that nobody answers")
        return seconds_until_freed(proxy, client)

    assert is_within(0.3, vanish)
    assert len(read_all_or_reset(server.wait_for_connections(1)[0])) <= 29


def seconds_until_freed(proxy: Proxy, client: socket.socket) -> float:
    """How long after the client has vanished its worker is idle."""
    proxy.wait_for_workers(1, " -> ")
    client.close()
    began = time.monotonic()
    proxy.wait_for_workers(1, "idle")
    return time.monotonic() - began


def read_all_or_reset(connection: socket.socket) -> bytes:
    """What came before the end, or nothing if that was a reset."""
    try:
        return read_all(connection)
    except ConnectionResetError:
        return b""


def test_a_client_that_half_closes_and_then_vanishes_frees_its_worker(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(silent), workers=1)

    def vanish() -> float:
        client = proxy.connect()
        client.shutdown(socket.SHUT_WR)
        return seconds_until_freed(proxy, client)

    assert is_within(0.3 if proxy.transport.name == "hybrid" else 1.5, vanish)


def test_a_client_that_vanishes_while_much_is_under_way_frees_its_worker(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_forever), workers=1)

    def vanish() -> float:
        client = proxy.connect()
        read_exactly(client, MIB)
        return seconds_until_freed(proxy, client)

    assert is_within(0.3, vanish)


def send_forever(connection: socket.socket) -> None:
    while True:
        connection.sendall(BLOCK)


@pytest.mark.alone
def test_a_client_that_reads_nothing_costs_little_and_disturbs_nobody(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(answer_or_flood), workers=2)
    with proxy.connect() as stalled:
        stalled.sendall(b"f")
        (busy,) = proxy.wait_for_workers(1, " -> ")
        wait_until(lambda: has_come_to_rest(proxy, busy), "no more fits anywhere")
        answer_promptly(proxy, at_full_length(60))
        assert processes.pss_kib(busy) < 16 * 1024
        assert has_come_to_rest(proxy, busy)
        read_exactly(stalled, 8 * MIB)
    board.wait_until_idle(proxy, 2)


def has_come_to_rest(proxy: Proxy, pid: int) -> bool:
    """Whether a worker moves nothing and does not spin about it."""
    before = processes.processor_ticks(pid), [row.down for row in board.ask(proxy)]
    let_pass(0.2, why="what moves or spins would show it")
    return before == (processes.processor_ticks(pid), [row.down for row in board.ask(proxy)])


def answer_or_flood(connection: socket.socket) -> None:
    """An endpoint that sends without end to whoever says f, and echoes to others."""
    if connection.recv(1, socket.MSG_PEEK) == b"f":
        send_forever(connection)
    echo(connection)


@pytest.mark.alone
def test_an_endpoint_that_reads_nothing_costs_bounded_memory(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(silent), workers=1)
    with proxy.connect() as client:
        (busy,) = proxy.wait_for_workers(1, " -> ")
        client.setblocking(False)
        sent = 0
        while select.select([], [client], [], 0.5 * SLOWNESS)[1]:
            sent += client.send(BLOCK)
        assert sent > 0
        assert processes.pss_kib(busy) < 16 * 1024
        assert has_come_to_rest(proxy, busy)


def test_an_endpoint_that_dies_ends_its_client_and_is_used_once_back(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(send_forever)
    proxy = start_proxy(server)
    with proxy.connect() as client:
        read_exactly(client, MIB)
        server.close()
        wait_until(lambda: client.recv(CHUNK, socket.MSG_DONTWAIT) == b"", "the end")
    for _ in range(8):
        assert not answers(proxy)
    proxy.log.wait_for("Connection refused", count=8)
    start_server(port=server.port)
    assert all(answers(proxy) for _ in range(8))
