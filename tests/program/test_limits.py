"""Limits of silence, and sides that read slowly: bytes that flow are no silence."""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from typing import Callable, Iterator, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.program import Proxy
from tests.support.relaying import Kinds, Relayed, on
from tests.support.servers import Handler, echo, exchange, silent
from tests.support.timing import SLOWNESS, is_within, let_pass, wait_until
from vsock_proxy.serving.outcome import End
from vsock_proxy.serving.relay import Relay

KIB = 1 << 10
MIB = 1 << 20
PAUSE = 0.025
Join = Callable[..., Relayed]


@pytest.fixture
def join() -> Iterator[Join]:
    joined: List[Relayed] = []

    def start(*arguments: object, **options: object) -> Relayed:
        joined.append(Relayed(*arguments, **options))  # type: ignore[arg-type]
        return joined[-1]

    yield start
    for one in joined:
        one.close()


def read_slowly(sock: socket.socket, total: int, rate: int) -> int:
    """Read at this rate, in bytes a second, until the end. Returns how many bytes came."""
    count = 0
    began = time.monotonic()
    while count < total:
        part = sock.recv(min(16 * KIB, total - count))
        if not part:
            break
        count += len(part)
        let_pass(
            max(0.0, began + count / rate - time.monotonic()), why="the side reads at this rate"
        )
    return count


def ended(proxy: Proxy) -> str:
    """The line that says how the one connection ended."""
    return proxy.log.wait_for(" ended: ")[0]


# Sides that read slowly


def test_an_endpoint_that_reads_slowly_without_pause_is_not_cut(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    total = MIB
    received: List[int] = []

    def read(connection: socket.socket) -> None:
        # The kernel then holds the rest for it on the proxy's side.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        received.append(read_slowly(connection, total, int(400 * KIB / SLOWNESS)))
        connection.close()

    proxy = start_proxy(start_server(read), "--idle-timeout", f"{SLOWNESS:g}", workers=1)
    with proxy.connect() as client:
        client.sendall(bytes(total))
        client.recv(1)
    assert f"{total} bytes up" in ended(proxy)
    assert "endpoint closed" in ended(proxy)
    assert received == [total]


def test_a_client_that_reads_slowly_without_pause_is_not_cut(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    total = 2 * MIB

    def send(connection: socket.socket) -> None:
        connection.sendall(bytes(total))
        connection.recv(1)

    proxy = start_proxy(start_server(send), "--idle-timeout", f"{SLOWNESS:g}", workers=1)
    with proxy.connect() as client:
        assert read_slowly(client, total, int(700 * KIB / SLOWNESS)) == total
    assert "client closed" in ended(proxy)


@pytest.mark.hybrid_only  # a vsock client's kernel tells of 256 KiB at a time
def test_a_half_closed_client_that_reads_slowly_is_not_cut(join: Join) -> None:
    relayed = join(Relay(half_close_timeout=0.5))
    relayed.client.shutdown(socket.SHUT_WR)
    relayed.endpoint.sendall(bytes(150 * KIB))
    assert read_slowly(relayed.client, 150 * KIB, 150 * KIB) == 150 * KIB
    assert relayed.is_running()
    relayed.endpoint.close()
    assert relayed.outcome().end is End.CLIENT_CLOSED


@pytest.mark.hybrid_only  # beside the relay alone
def test_an_endpoint_that_reads_slowly_after_its_half_close_is_not_cut(join: Join) -> None:
    relayed = join(Relay(half_close_timeout=0.6))
    relayed.endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
    relayed.endpoint.shutdown(socket.SHUT_WR)
    assert relayed.client.recv(1) == b""
    relayed.client.sendall(bytes(MIB))
    assert read_slowly(relayed.endpoint, MIB, 600 * KIB) == MIB
    assert relayed.is_running()
    relayed.client.close()
    assert relayed.outcome().end is End.ENDPOINT_CLOSED


LIMIT = 0.5
LATE = 0.1


@pytest.mark.hybrid_only  # beside the relay alone
@pytest.mark.alone
@pytest.mark.parametrize("side", ["client", "endpoint"])
def test_a_slow_reader_that_stops_for_good_is_ended_a_limit_later(side: str, join: Join) -> None:

    def stop() -> float:
        relayed = join(idle_timeout=LIMIT)
        source, sink = relayed.endpoint, relayed.client
        if side == "endpoint":
            source, sink = sink, source
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        threading.Thread(target=_send_all, args=(source, bytes(8 * MIB)), daemon=True).start()
        for _ in range(4):
            let_pass(0.3, why="the side reads slowly")
            # More than one packet, so that the kernel tells.
            for _ in range(8):
                sink.recv(32 * KIB)
        stopped = time.monotonic()
        assert relayed.outcome().end is End.IDLE
        late = time.monotonic() - stopped - LIMIT
        assert late >= -0.01
        return late

    assert is_within(LATE, stop)


def _send_all(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        # The relay ended the connection, as it should.
        pass


@pytest.mark.parametrize("handler", [silent, echo], ids=["nothing said", "all said"])
def test_a_connection_in_which_nothing_moves_costs_no_processor_time(
    handler: Handler, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(handler), "--idle-timeout", "100", workers=1)
    with proxy.connect() as client:
        if handler is echo:
            exchange(client, b"x")
        (worker,) = proxy.wait_for_workers(1, "worker 1 [")
        wait_until(lambda: processes.state(worker) == "S", "it sleeps")
        let_pass(0.1, why="what the worker did last is done")
        before = processes.context_switches(worker)
        let_pass(1, why="nothing may wake the worker")
        assert processes.context_switches(worker) - before <= 1


# How exactly a limit is kept


@pytest.mark.alone
@pytest.mark.parametrize("limit", [0.02, 0.3, 1.001])
def test_the_idle_timeout_is_kept_within_100_ms_and_never_early(
    limit: float, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(echo), "--idle-timeout", str(limit), workers=1)

    def be_idle() -> float:
        with proxy.connect() as client:
            before = time.monotonic()
            client.sendall(b"x")
            if client.recv(1) != b"x":
                # Somebody else had the processor for as long as the limit.
                return math.inf
            after = time.monotonic()
            assert client.recv(1) == b""
            now = time.monotonic()
            assert now - before >= limit
            return now - after - limit

    assert is_within(LATE, be_idle)
    assert "idle timeout" in ended(proxy)


@pytest.mark.alone
@pytest.mark.parametrize("limit", [0.3, 1.001])
def test_the_idle_timeout_is_kept_after_the_clients_half_close(
    limit: float, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(silent), "--idle-timeout", str(limit), workers=1)

    def be_idle() -> float:
        with proxy.connect() as client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            last = time.monotonic()
            assert client.recv(1) == b""
            late = time.monotonic() - last - limit
            assert late >= 0
            return late

    assert is_within(LATE, be_idle)


@pytest.mark.alone
@pytest.mark.parametrize("kinds", [on(("Unix", "TCP")), on(("TCP", "TCP")), on(("vsock", "TCP"))])
def test_the_half_close_limit_is_never_early_and_at_most_100_ms_late(
    kinds: Kinds, join: Join
) -> None:
    limit = 1.2

    def be_idle() -> float:
        relayed = join(Relay(half_close_timeout=limit), kinds)
        relayed.client.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        assert relayed.outcome().end is End.HALF_CLOSED_IDLE
        late = time.monotonic() - began - limit
        assert late >= 0
        return late

    assert is_within(LATE, be_idle)


@pytest.mark.hybrid_only  # the kernel tells it of a Unix and of a TCP socket alone
@pytest.mark.alone
def test_bytes_that_flow_freely_cost_no_look_at_the_kernels_buffers(join: Join) -> None:
    looks: List[None] = []

    class Counted(Relay):
        def _held(self) -> tuple[int, int]:
            looks.append(None)
            return super()._held()

    relayed = join(Counted(), idle_timeout=5)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        relayed.client.sendall(struct.pack("d", until))
        relayed.endpoint.recv(8)
    assert len(looks) < 10
