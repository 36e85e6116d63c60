"""The relay alone, between two connected sockets, of every pair of transports.

What it does for a client it does for an endpoint: where that can be seen, a test takes both sides.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import List

import pytest

from tests.support.relaying import EACH_PAIR, PAIRS, Kinds, Relayed, on, tcp_pair
from tests.support.servers import read_all, read_exactly
from tests.support.sides import CLIENT, SIDES, closed_by, fill, half_close, sides
from tests.support.timing import SLOWNESS, let_pass
from tests.unit.relay.conftest import Join
from vsock_proxy.serving.direction import BUFFER_SIZE
from vsock_proxy.serving.outcome import End
from vsock_proxy.serving.relay import Relay

MIB = 1 << 20


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
        let_pass(0.1, why="less than the limit, which each byte begins again")
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
