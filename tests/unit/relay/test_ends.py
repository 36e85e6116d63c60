"""How a relay ends: a side that goes for good, and resets."""

from __future__ import annotations

import errno
import select
import socket
from typing import Callable

import pytest

from tests.support.relaying import EACH_PAIR, PAIRS, Kinds, on, tcp_pair
from tests.support.servers import read_all, read_exactly
from tests.support.sides import (
    CLIENT,
    ENDPOINT,
    SIDES,
    closed_by,
    fill,
    half_close,
    reset,
    reset_by,
    sides,
)
from tests.support.timing import wait_until
from tests.unit.relay.conftest import Join
from vsock_proxy.serving.direction import BUFFER_SIZE
from vsock_proxy.serving.outcome import End
from vsock_proxy.serving.relay import Relay

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
    assert not relayed.spins()


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
    assert not relayed.spins()
    assert relayed.is_running()


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


@pytest.mark.parametrize("leave", [socket.socket.close, half_close], ids=["closed", "half-closed"])
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
