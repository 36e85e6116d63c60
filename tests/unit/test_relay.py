"""The relay alone, between two connected sockets, of every pair of transports.

What it does for a client it does for an endpoint: where that can be seen, a test takes both sides.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
import time
from typing import Callable, Iterator, List, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.relaying import EACH_PAIR, PAIRS, Kinds, Relayed, on, tcp_pair
from tests.support.servers import read_all, read_exactly
from tests.support.timing import SLOWNESS, at_full_length, wait_until
from vsock_proxy.serving.direction import BUFFER_SIZE, BULK_READ
from vsock_proxy.serving.outcome import End
from vsock_proxy.serving.relay import Relay

MIB = 1 << 20
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
CLIENT, ENDPOINT = "client", "endpoint"
SIDES = pytest.mark.parametrize("side", [CLIENT, ENDPOINT])
EXAMPLES = int(at_full_length(40, 12 if SLOWNESS < 5 else 8))

Join = Callable[..., Relayed]


@pytest.fixture
def begun() -> Iterator[Join]:
    """Begins relays, which end with the test."""
    joined: List[Relayed] = []

    def start(kinds: Kinds, relay: Relay | None = None, idle_timeout: float = 0.0) -> Relayed:
        joined.append(Relayed(relay, kinds, idle_timeout))
        return joined[-1]

    yield start
    for one in joined:
        one.close()


@pytest.fixture(params=[on(kinds) for kinds in EACH_PAIR])
def join(request: pytest.FixtureRequest, begun: Join) -> Join:
    """Joins a client and an endpoint by a relay, for each pair of transports."""
    return lambda *arguments, **options: begun(request.param, *arguments, **options)


def sides(relayed: Relayed, side: str) -> Tuple[socket.socket, socket.socket]:
    """A side, and the other one."""
    both = relayed.client, relayed.endpoint
    return both if side == CLIENT else both[::-1]


def closed_by(side: str) -> End:
    return End.CLIENT_CLOSED if side == CLIENT else End.ENDPOINT_CLOSED


def reset_by(side: str) -> End:
    return End.CLIENT_RESET if side == CLIENT else End.ENDPOINT_RESET


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """What SO_LINGER makes a reset on TCP, and nothing else on other transports."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def _end(relayed: Relayed) -> None:
    """End a connection in peace, whatever its sides can tell."""
    relayed.client.close()
    relayed.endpoint.close()


def test_what_one_side_sends_the_other_receives(join: Join) -> None:
    relayed = join()
    relayed.client.sendall(b"up")
    assert read_exactly(relayed.endpoint, 2) == b"up"
    relayed.endpoint.sendall(b"down")
    assert read_exactly(relayed.client, 4) == b"down"


def test_bytes_are_counted_each_way(join: Join) -> None:
    relayed = join()
    relayed.client.sendall(b"12345")
    read_exactly(relayed.endpoint, 5)
    relayed.endpoint.sendall(b"123")
    read_exactly(relayed.client, 3)
    _end(relayed)
    relayed.outcome()
    assert list(relayed.relay.moved) == [5, 3]


@SIDES
def test_a_half_close_passes_on_after_its_data(side: str, join: Join) -> None:
    relayed = join()
    one, other = sides(relayed, side)
    sender = threading.Thread(target=_send_and_half_close, args=(one, b"x" * 100_000))
    sender.start()
    assert len(read_all(other)) == 100_000
    sender.join()
    other.sendall(b"reply")
    other.close()
    assert read_all(one) == b"reply"
    one.close()
    outcome = relayed.outcome()
    assert (outcome.end, outcome.clean) == (closed_by(side), True)


def _send_and_half_close(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    half_close(sock)


@SIDES
def test_a_half_close_is_told_once(side: str, join: Join) -> None:
    told: List[None] = []
    relayed = join(Relay(on_half_close=lambda: told.append(None)))
    one, other = sides(relayed, side)
    half_close(one)
    assert read_all(other) == b""
    other.sendall(b"x")
    assert read_exactly(one, 1) == b"x"
    assert told == [None]


@SIDES
def test_a_half_closed_connection_goes_on_the_other_way(side: str, join: Join) -> None:
    relayed = join()
    one, other = sides(relayed, side)
    half_close(one)
    assert read_all(other) == b""
    for _ in range(20):
        other.sendall(b"x" * 1000)
        assert read_exactly(one, 1000) == b"x" * 1000
    assert relayed.is_running()


# A side that goes for good


def _with_side_of(*transports: str) -> pytest.MarkDecorator:
    """For each pair each side that is of one of these."""
    return pytest.mark.parametrize(
        ("kinds", "side"),
        [
            on(kinds, side)
            for kinds in EACH_PAIR
            for side, kind in zip((CLIENT, ENDPOINT), kinds)
            if kind in transports
        ],
    )


# Of TCP nothing tells it.
GONE_IS_TOLD = _with_side_of("Unix", "vsock")


@GONE_IS_TOLD
def test_a_side_that_closes_ends_the_connection_though_the_other_stays(
    kinds: Kinds, side: str, begun: Join
) -> None:
    relayed = begun(kinds)
    one, other = sides(relayed, side)
    one.sendall(b"last words")
    one.close()
    assert relayed.outcome().end is closed_by(side)
    assert read_all(other) == b"last words"


@GONE_IS_TOLD
def test_a_half_closed_side_that_goes_away_ends_the_connection_soon(
    kinds: Kinds, side: str, begun: Join
) -> None:
    relayed = begun(kinds)
    one, other = sides(relayed, side)
    half_close(one)
    assert read_all(other) == b""
    one.close()
    # vsock is asked once a second.
    soon = 1.5 if "vsock" in kinds else 0.9
    assert relayed.outcome(timeout=soon).end is closed_by(side)


@GONE_IS_TOLD
def test_what_comes_for_a_side_that_has_gone_ends_the_connection_soon(
    kinds: Kinds, side: str, begun: Join
) -> None:
    relayed = begun(kinds)
    one, other = sides(relayed, side)
    one.close()
    _send_until_refused(other)
    assert relayed.outcome().end in (closed_by(side), reset_by(side))


@_with_side_of("TCP")
def test_a_tcp_side_that_has_gone_is_noticed_once_something_comes_for_it(
    kinds: Kinds, side: str, begun: Join
) -> None:
    relayed = begun(kinds)
    one, other = sides(relayed, side)
    one.close()
    assert read_all(other) == b""
    assert relayed.is_running()
    _send_until_refused(other)
    assert relayed.outcome().end is reset_by(side)


@pytest.mark.hybrid_only
def test_a_unix_side_that_goes_while_the_other_does_not_read_times_out(
    begun: Join,
) -> None:
    relayed = begun(("Unix", "TCP"), Relay(half_close_timeout=0.5))
    fill(relayed.client)
    relayed.client.close()
    assert relayed.outcome().end is End.HALF_CLOSED_IDLE


@SIDES
def test_a_side_that_goes_while_the_other_does_not_read_costs_no_cpu_time(
    side: str, join: Join
) -> None:
    relayed = join()
    one, _ = sides(relayed, side)
    fill(one)
    one.close()
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.25


@SIDES
def test_a_side_that_ends_while_the_other_does_not_read_costs_no_cpu_time(
    side: str, join: Join
) -> None:
    relayed = join()
    one, other = sides(relayed, side)
    half_close(other)
    assert read_all(one) == b""
    fill(one)
    one.close()
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.25
    assert relayed.is_running()


def fill(sock: socket.socket) -> None:
    """Write until the relay and both kernel buffers are full."""
    sock.settimeout(0.3)
    try:
        while True:
            sock.send(bytes(BUFFER_SIZE))
    except socket.timeout:
        pass


# Sides that do not read


@SIDES
def test_reading_stops_while_the_other_side_does_not_take_the_data(side: str, join: Join) -> None:
    relayed = join()
    one, other = sides(relayed, side)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    sent = 0
    one.settimeout(0.3)
    with pytest.raises(socket.timeout):
        while sent < 256 * MIB:
            sent += one.send(bytes(BUFFER_SIZE))
    assert sent < 32 * MIB
    assert len(read_exactly(other, sent)) == sent


@SIDES
def test_a_full_buffer_one_way_does_not_hold_up_the_other_way(side: str, join: Join) -> None:
    relayed = join()
    one, other = sides(relayed, side)
    fill(one)
    other.sendall(b"still here")
    assert read_exactly(one, 10) == b"still here"


# Small messages


@SIDES
@pytest.mark.parametrize(("messages", "at_once"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("kinds", [on(kinds) for kinds in EACH_PAIR if kinds[1] == "TCP"])
def test_what_is_sent_on_tcp_after_the_first_message_is_not_held_back(
    kinds: Kinds, messages: int, at_once: int, side: str
) -> None:
    one, near_one = PAIRS[kinds[0]]()
    near_other, other = tcp_pair()
    near_other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    near = (near_one, near_other) if side == CLIENT else (near_other, near_one)
    # A relay that does not last by the time: lasting ones hold nothing back anyway.
    thread = threading.Thread(target=Relay().run, args=near)
    # A side has mostly sent its first message by the time that there is a relay.
    one.sendall(b"x")
    thread.start()
    assert other.recv(1) == b"x"
    for _ in range(messages - 1):
        one.sendall(b"x")
        assert other.recv(1) == b"x"
    one.close()
    other.close()
    thread.join()
    assert near_other.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == at_once
    for sock in near:
        sock.close()


# Resets


@_with_side_of("TCP", "Unix")
def test_a_reset_is_no_clean_end_and_passes_on_to_a_side_that_knows_it(
    kinds: Kinds, side: str, begun: Join
) -> None:
    relayed = begun(kinds)
    one, other = sides(relayed, side)
    # On a Unix socket closing is a reset if there is something unread.
    other.sendall(b"never read")
    wait_until(lambda: one.recv(10, socket.MSG_PEEK), "data arrived")
    reset(one)
    outcome = relayed.outcome()
    assert (outcome.end, outcome.clean) == (reset_by(side), False)
    assert outcome.code == errno.ECONNRESET
    others = kinds[side == CLIENT]
    assert _seen(other) == ("reset" if others == "TCP" else "end")


def _seen(sock: socket.socket) -> str:
    """How the connection of a side ended."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return "reset"
    return "end"


def test_what_was_read_of_the_endpoint_before_comes_first_and_is_counted() -> None:
    far_client, near_client = socket.socketpair()
    near_endpoint, endpoint = socket.socketpair()
    endpoint.sendall(b" and more")
    endpoint.close()
    relay = Relay()
    relay.run(near_client, near_endpoint, said=b"some")
    near_client.close()
    assert read_all(far_client) == b"some and more"
    assert list(relay.moved) == [0, 13]
    for sock in (far_client, near_endpoint):
        sock.close()


@pytest.mark.parametrize("leave", [socket.socket.close, _half_close], ids=["closed", "half-closed"])
@pytest.mark.parametrize("kinds", [on(kinds) for kinds in EACH_PAIR if kinds[1] == "TCP"])
def test_an_endpoint_that_reset_before_the_first_byte_took_no_bytes(
    kinds: Kinds, leave: Callable[[socket.socket], None]
) -> None:
    far_client, near_client = PAIRS[kinds[0]]()
    near_endpoint, endpoint = tcp_pair()
    far_client.sendall(b"never taken")
    leave(far_client)
    reset(endpoint)
    poll = select.poll()
    poll.register(near_endpoint, 0)
    assert poll.poll(20_000)
    relay = Relay()
    outcome = relay.run(near_client, near_endpoint)
    assert (outcome.end, outcome.code) == (End.ENDPOINT_RESET, errno.ECONNRESET)
    assert list(relay.moved) == [0, 0]
    for sock in (far_client, near_client, near_endpoint):
        sock.close()


def test_a_reply_is_delivered_though_the_endpoint_stopped_reading(join: Join) -> None:
    relayed = join()
    relayed.endpoint.sendall(b"413 too large")
    relayed.endpoint.close()
    _send_until_refused(relayed.client)
    assert read_exactly(relayed.client, 13) == b"413 too large"


def _send_until_refused(sock: socket.socket) -> None:
    """Try and try again: poll() does not tell that nothing can be sent on vsock any more."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    wait_until(lambda: _is_refused(sock), "nothing can be sent any more")
    sock.settimeout(timeout)


def _is_refused(sock: socket.socket) -> bool:
    try:
        sock.send(bytes(BUFFER_SIZE))
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


# Silence


@SIDES
def test_silence_after_a_half_close_ends_the_connection(side: str, join: Join) -> None:
    relayed = join(Relay(half_close_timeout=0.3))
    one, _ = sides(relayed, side)
    half_close(one)
    outcome = relayed.outcome(timeout=5)
    assert (outcome.end, outcome.clean) == (End.HALF_CLOSED_IDLE, False)


@SIDES
def test_bytes_after_a_half_close_keep_the_connection(side: str, join: Join) -> None:
    relayed = join(Relay(half_close_timeout=0.6 * SLOWNESS))
    one, other = sides(relayed, side)
    half_close(one)
    for _ in range(10):
        threading.Event().wait(0.1)
        other.sendall(b"x")
    other.close()
    assert read_all(one) == b"x" * 10
    assert relayed.outcome().clean


def test_silence_ends_a_connection_after_the_idle_timeout(join: Join) -> None:
    began = time.monotonic()
    relayed = join(idle_timeout=0.2)
    assert relayed.outcome().end is End.IDLE
    assert 0.2 <= time.monotonic() - began < 2 * SLOWNESS


def test_one_relay_serves_one_connection_after_the_other(join: Join) -> None:
    relay = Relay()
    total = 0
    for number in range(3):
        relayed = join(relay)
        message = b"connection %d" % number
        relayed.client.sendall(message)
        assert read_exactly(relayed.endpoint, len(message)) == message
        _end(relayed)
        relayed.outcome()
        total += len(message)
        assert list(relay.moved) == [total, 0]


# Whatever the sizes


Piece = st.tuples(st.integers(1, 300_000), st.sampled_from((0.0, 0.0, 0.0, 0.001, 0.02)))
Script = st.lists(Piece, max_size=12)
Appetite = st.tuples(st.integers(1, 200_000), st.sampled_from((0.0, 0.0, 0.0005, 0.005)))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    up=Script,
    down=Script,
    client_reads=Appetite,
    endpoint_reads=Appetite,
    seed=st.binary(min_size=16, max_size=16),
)
@pytest.mark.parametrize("bulk_read", [1, BULK_READ], ids=["spliced where it can be", "as it is"])
@pytest.mark.parametrize("kinds", [on(kinds) for kinds in EACH_PAIR])
def test_every_byte_arrives_once_in_order_for_any_sizes_splits_and_pauses(
    kinds: Kinds,
    bulk_read: int,
    up: List[tuple[int, float]],
    down: List[tuple[int, float]],
    client_reads: tuple[int, float],
    endpoint_reads: tuple[int, float],
    seed: bytes,
) -> None:
    relayed = Relayed(Relay(bulk_read=bulk_read), kinds)
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
            thread.join(30 * SLOWNESS)
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
