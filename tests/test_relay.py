"""The relay alone, over two connected sockets."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from typing import Callable, Iterator, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.relaying import Relayed, SocketPair, tcp_pair
from tests.support.servers import read_all, read_exactly
from tests.support.timing import wait_until
from vsock_proxy.serving.direction import BUFFER_SIZE, BULK_READ
from vsock_proxy.serving.outcome import End
from vsock_proxy.serving.relay import Relay

pytestmark = pytest.mark.hybrid_only

MIB = 1 << 20
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Join = Callable[..., Relayed]


@pytest.fixture
def join() -> Iterator[Join]:
    joined: List[Relayed] = []

    def start(relay: Relay | None = None, idle_timeout: float = 0.0) -> Relayed:
        joined.append(Relayed(relay, idle_timeout=idle_timeout))
        return joined[-1]

    yield start
    for one in joined:
        one.close()


def _half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def test_what_one_side_sends_the_other_receives(join: Join) -> None:
    relayed = join()
    relayed.client.sendall(b"up")
    assert read_exactly(relayed.endpoint, 2) == b"up"
    relayed.endpoint.sendall(b"down")
    assert read_exactly(relayed.client, 4) == b"down"


@pytest.mark.parametrize(("messages", "at_once"), [(1, 0), (2, 1)])
def test_what_a_client_sends_after_its_first_message_is_not_held_back(
    messages: int, at_once: int
) -> None:
    client, near_client = socket.socketpair()
    near_endpoint, endpoint = tcp_pair()
    near_endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    thread = threading.Thread(target=Relay().run, args=(near_client, near_endpoint))
    # A client has mostly sent its first message by the time that there is a relay.
    client.sendall(b"x")
    thread.start()
    assert endpoint.recv(1) == b"x"
    for _ in range(messages - 1):
        client.sendall(b"x")
        assert endpoint.recv(1) == b"x"
    client.close()
    thread.join()
    assert near_endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == at_once
    for sock in (near_client, near_endpoint, endpoint):
        sock.close()


def test_bytes_are_counted_each_way(join: Join) -> None:
    relayed = join()
    relayed.client.sendall(b"12345")
    read_exactly(relayed.endpoint, 5)
    relayed.endpoint.sendall(b"123")
    read_exactly(relayed.client, 3)
    relayed.client.close()
    relayed.outcome()
    assert list(relayed.relay.moved) == [5, 3]


def test_a_half_close_of_the_client_passes_on_after_its_data(join: Join) -> None:
    relayed = join()
    relayed.client.sendall(b"x" * 100_000)
    relayed.client.shutdown(socket.SHUT_WR)
    assert len(read_all(relayed.endpoint)) == 100_000
    relayed.endpoint.sendall(b"reply")
    relayed.endpoint.close()
    assert read_all(relayed.client) == b"reply"
    assert relayed.outcome().clean


def test_a_half_close_of_the_endpoint_passes_on_after_its_data(join: Join) -> None:
    relayed = join()
    relayed.endpoint.sendall(b"x" * 100_000)
    relayed.endpoint.shutdown(socket.SHUT_WR)
    assert len(read_all(relayed.client)) == 100_000
    relayed.client.sendall(b"thanks")
    relayed.client.close()
    assert read_all(relayed.endpoint) == b"thanks"
    assert relayed.outcome().end is End.ENDPOINT_CLOSED


def test_a_half_close_is_told_once(join: Join) -> None:
    told: List[None] = []
    relayed = join(Relay(on_half_close=lambda: told.append(None)))
    relayed.client.shutdown(socket.SHUT_WR)
    assert read_all(relayed.endpoint) == b""
    relayed.endpoint.sendall(b"x")
    assert read_exactly(relayed.client, 1) == b"x"
    assert told == [None]


def test_a_client_that_closes_ends_the_connection_though_the_endpoint_stays(join: Join) -> None:
    relayed = join()
    relayed.client.sendall(b"last words")
    relayed.client.close()
    assert relayed.outcome().end is End.CLIENT_CLOSED
    assert read_all(relayed.endpoint) == b"last words"


def test_a_half_closed_client_that_goes_away_ends_the_connection_at_once(join: Join) -> None:
    relayed = join()
    relayed.client.shutdown(socket.SHUT_WR)
    assert read_all(relayed.endpoint) == b""
    relayed.client.close()
    assert relayed.outcome(timeout=0.9).end is End.CLIENT_CLOSED


def test_a_client_that_goes_away_while_the_endpoint_does_not_read_costs_no_processor_time(
    join: Join,
) -> None:
    relayed = join(Relay(half_close_timeout=0.5))
    _fill(relayed.client)
    relayed.client.close()
    before = time.process_time()
    assert relayed.outcome().end is End.HALF_CLOSED_IDLE
    assert time.process_time() - before < 0.25


def test_an_endpoint_that_ends_while_the_client_does_not_read_costs_no_processor_time(
    join: Join,
) -> None:
    relayed = join()
    relayed.client.shutdown(socket.SHUT_WR)
    assert read_all(relayed.endpoint) == b""
    _fill(relayed.endpoint)
    relayed.endpoint.close()
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.25
    assert relayed.is_running()


def _fill(sock: socket.socket) -> None:
    """Write until the relay and both kernel buffers are full."""
    sock.settimeout(0.3)
    try:
        while True:
            sock.send(bytes(BUFFER_SIZE))
    except socket.timeout:
        pass


def test_reading_stops_while_the_other_side_does_not_take_the_data(join: Join) -> None:
    relayed = join()
    relayed.endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    sent = 0
    relayed.endpoint.settimeout(0.3)
    with pytest.raises(socket.timeout):
        while sent < 256 * MIB:
            sent += relayed.endpoint.send(bytes(BUFFER_SIZE))
    assert sent < 16 * MIB
    relayed.endpoint.settimeout(20)
    assert len(read_exactly(relayed.client, sent)) == sent


def test_a_full_buffer_one_way_does_not_hold_up_the_other_way(join: Join) -> None:
    relayed = join()
    _fill(relayed.endpoint)
    relayed.client.sendall(b"still here")
    assert read_exactly(relayed.endpoint, 10) == b"still here"


def test_a_reset_by_the_client_is_not_a_clean_end(join: Join) -> None:
    relayed = join()
    relayed.endpoint.sendall(b"never read")
    wait_until(lambda: relayed.client.recv(10, socket.MSG_PEEK), "data at the client")
    relayed.client.close()
    outcome = relayed.outcome()
    assert (outcome.end, outcome.clean) == (End.CLIENT_RESET, False)
    assert outcome.error == "Connection reset by peer"


def test_a_reset_by_the_endpoint_ends_the_connection(join: Join) -> None:
    relayed = join()
    relayed.endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    relayed.endpoint.close()
    outcome = relayed.outcome()
    assert (outcome.end, outcome.clean) == (End.ENDPOINT_RESET, False)


@pytest.mark.parametrize("leave", [socket.socket.close, _half_close], ids=["closed", "half-closed"])
def test_an_endpoint_that_reset_before_the_first_byte_has_not_had_the_clients(
    leave: Callable[[socket.socket], None],
) -> None:
    client, near_client = socket.socketpair()
    near_endpoint, endpoint = tcp_pair()
    client.sendall(b"never taken")
    leave(client)
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    endpoint.close()
    poll = select.poll()
    poll.register(near_endpoint, 0)
    assert poll.poll(20_000)
    relay = Relay()
    outcome = relay.run(near_client, near_endpoint)
    assert (outcome.end, outcome.error) == (End.ENDPOINT_RESET, "Connection reset by peer")
    assert list(relay.moved) == [0, 0]
    for sock in (client, near_client, near_endpoint):
        sock.close()


def test_a_reply_is_delivered_though_the_endpoint_stopped_reading(join: Join) -> None:
    relayed = join()
    relayed.endpoint.sendall(b"413 too large")
    relayed.endpoint.close()
    _send_until_refused(relayed.client)
    assert read_exactly(relayed.client, 13) == b"413 too large"


def _send_until_refused(sock: socket.socket) -> None:
    try:
        for _ in range(1000):
            sock.send(bytes(BUFFER_SIZE))
    except (BrokenPipeError, ConnectionResetError):
        pass


def test_silence_after_a_half_close_ends_the_connection(join: Join) -> None:
    relayed = join(Relay(half_close_timeout=0.3))
    relayed.client.shutdown(socket.SHUT_WR)
    outcome = relayed.outcome(timeout=5)
    assert (outcome.end, outcome.clean) == (End.HALF_CLOSED_IDLE, False)


def test_bytes_after_a_half_close_keep_the_connection(join: Join) -> None:
    relayed = join(Relay(half_close_timeout=0.6))
    relayed.client.shutdown(socket.SHUT_WR)
    for _ in range(10):
        threading.Event().wait(0.1)
        relayed.endpoint.sendall(b"x")
    relayed.endpoint.close()
    assert read_all(relayed.client) == b"x" * 10
    assert relayed.outcome().clean


def test_silence_ends_a_connection_after_the_idle_timeout(join: Join) -> None:
    began = time.monotonic()
    relayed = join(idle_timeout=0.2)
    assert relayed.outcome().end is End.IDLE
    assert 0.2 <= time.monotonic() - began < 2


def test_one_relay_serves_one_connection_after_the_other(join: Join) -> None:
    relay = Relay()
    total = 0
    for number in range(3):
        relayed = join(relay)
        message = b"connection %d" % number
        relayed.client.sendall(message)
        assert read_exactly(relayed.endpoint, len(message)) == message
        relayed.client.close()
        relayed.outcome()
        total += len(message)
        assert list(relay.moved) == [total, 0]


Piece = st.tuples(st.integers(1, 300_000), st.sampled_from((0.0, 0.0, 0.0, 0.001, 0.02)))
Script = st.lists(Piece, max_size=12)
Appetite = st.tuples(st.integers(1, 200_000), st.sampled_from((0.0, 0.0, 0.0005, 0.005)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    up=Script,
    down=Script,
    client_reads=Appetite,
    endpoint_reads=Appetite,
    seed=st.binary(min_size=16, max_size=16),
)
@pytest.mark.parametrize(
    ("bulk_read", "client_pair"),
    [(1, socket.socketpair), (1, tcp_pair), (BULK_READ, socket.socketpair)],
    # Down to a Unix socket and up from any other.
    ids=["spliced down", "spliced up", "as it is"],
)
def test_every_byte_arrives_in_order_once_whatever_the_sizes_splits_and_pauses(
    bulk_read: int,
    client_pair: Callable[[], SocketPair],
    up: List[tuple[int, float]],
    down: List[tuple[int, float]],
    client_reads: tuple[int, float],
    endpoint_reads: tuple[int, float],
    seed: bytes,
) -> None:
    relayed = Relayed(Relay(bulk_read=bulk_read), client_pair)
    try:
        up_data, down_data = _content(up, seed), _content(down, seed[::-1])
        writers = [
            threading.Thread(target=_write, args=(relayed.client, up, up_data)),
            threading.Thread(target=_write, args=(relayed.endpoint, down, down_data)),
        ]
        received: List[bytes] = []
        reader = threading.Thread(
            target=lambda: received.append(_read(relayed.endpoint, *endpoint_reads))
        )
        for thread in (*writers, reader):
            thread.start()
        assert _read(relayed.client, *client_reads) == down_data
        for thread in (*writers, reader):
            thread.join(30)
        assert received == [up_data]
        assert relayed.outcome().clean
    finally:
        relayed.close()


def _content(script: List[tuple[int, float]], seed: bytes) -> bytes:
    """Bytes that repeat only after 65,537 times 16, so that a shift or a gap shows."""
    size = sum(length for length, _ in script)
    blocks = (size // 16) + 1
    return b"".join(seed[:12] + struct.pack(">I", number) for number in range(blocks))[:size]


def _write(sock: socket.socket, script: List[tuple[int, float]], data: bytes) -> None:
    at = 0
    for length, pause in script:
        sock.sendall(data[at : at + length])
        at += length
        if pause:
            time.sleep(pause)
    sock.shutdown(socket.SHUT_WR)


def _read(sock: socket.socket, size: int, pause: float) -> bytes:
    parts: List[bytes] = []
    while True:
        part = sock.recv(size)
        if not part:
            return b"".join(parts)
        parts.append(part)
        if pause and len(parts) < 100:
            time.sleep(pause)
