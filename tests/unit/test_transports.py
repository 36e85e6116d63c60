"""What the sockets of each transport tell and can be told: what the table says of them is so."""

from __future__ import annotations

import errno
import select
import socket
from typing import Callable, Dict, Iterator, List, Tuple

import pytest

from tests.support.relaying import PAIRS, SocketPair
from tests.support.timing import wait_until
from vsock_proxy.serving.transports import (
    BY_FAMILY,
    FAULT,
    TCP,
    UNIX,
    VSOCK,
    end_on_close,
    is_gone,
    may_send,
    reset_on_close,
    take_error,
    transport_of,
    unsent,
)

KINDS = {"TCP": TCP, "Unix": UNIX, "vsock": VSOCK}
Act = Callable[[socket.socket], None]


def on(kind: str, *more: object) -> object:
    mark = pytest.mark.vsock_only if kind == "vsock" else pytest.mark.hybrid_only
    return pytest.param(kind, *more, marks=mark, id=", ".join((kind, *map(str, more[:1]))))


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[SocketPair]:
    """The peer's socket, and the relay's."""
    far, near = PAIRS[request.param]()
    far.settimeout(20)
    yield far, near
    far.close()
    near.close()


EACH = pytest.mark.parametrize("pair", [on(kind) for kind in PAIRS], indirect=True)


def _half_close(far: socket.socket) -> None:
    far.shutdown(socket.SHUT_WR)


def _reset(far: socket.socket) -> None:
    reset_on_close(far)
    far.close()


def _event(near: socket.socket) -> int:
    """What poll() tells once it tells anything."""
    poll = select.poll()
    poll.register(near, select.POLLIN)
    return poll.poll(20_000)[0][1]


# What the peer does, and whether it is then known to be wholly gone; None: it has no reset.
TOLD: Dict[str, List[Tuple[str, Act, bool]]] = {
    "TCP": [
        ("half-closes", _half_close, False),
        # Nothing tells.
        ("closes", socket.socket.close, False),
        ("resets", _reset, True),
    ],
    "Unix": [("half-closes", _half_close, False), ("closes", socket.socket.close, True)],
    "vsock": [("half-closes", _half_close, False), ("closes", socket.socket.close, True)],
}


@pytest.mark.parametrize(
    ("pair", "name", "act", "gone"),
    [on(kind, *told) for kind in PAIRS for told in TOLD[kind]],
    indirect=["pair"],
)
def test_a_peer_that_has_ended_is_gone_or_not_known_to_be(
    pair: SocketPair, name: str, act: Act, gone: bool
) -> None:
    far, near = pair
    act(far)
    event = _event(near)
    assert is_gone(near, event) is gone
    assert is_gone(near, event) is gone, "asking changes nothing"
    assert may_send(near) is not gone


@EACH
def test_poll_tells_by_itself_what_need_not_be_asked(pair: SocketPair) -> None:
    far, near = pair
    far.close()
    event = _event(near)
    transport = transport_of(near)
    tells_nothing = transport in (TCP, VSOCK)
    assert bool(event & FAULT) is not tells_nothing
    assert transport.must_be_asked is (transport is VSOCK)


@EACH
def test_closing_is_a_reset_where_the_transport_has_one(pair: SocketPair) -> None:
    far, near = pair
    reset_on_close(near)
    near.close()
    if transport_of(far).has_reset:
        with pytest.raises(ConnectionResetError):
            far.recv(1)
    else:
        assert far.recv(1) == b""


@EACH
def test_closing_is_an_end_once_that_was_taken_back(pair: SocketPair) -> None:
    far, near = pair
    reset_on_close(near)
    end_on_close(near)
    near.close()
    assert far.recv(1) == b""


@EACH
def test_an_error_is_taken_once(pair: SocketPair) -> None:
    far, near = pair
    far.sendall(b"unread by the relay")
    near.sendall(b"unread by the peer")
    wait_until(lambda: far.recv(1, socket.MSG_PEEK), "data arrived")
    _reset(far)
    _event(near)
    if transport_of(near) is VSOCK:
        assert take_error(near) is None
        return
    wait_until(lambda: select.select([near], [], [], 0)[0], "it is told")
    error = take_error(near)
    assert error is not None
    assert error.errno == errno.ECONNRESET
    assert take_error(near) is None


@EACH
def test_what_a_peer_takes_is_no_longer_unsent(pair: SocketPair) -> None:
    far, near = pair
    near.sendall(b"x" * 1000)
    assert len(far.recv(1000, socket.MSG_WAITALL)) == 1000
    wait_until(lambda: unsent(near.fileno()) == 0, "nothing is unsent")


@pytest.mark.hybrid_only
def test_each_family_that_a_socket_of_the_proxy_may_have_has_a_transport() -> None:
    assert set(BY_FAMILY.values()) == set(KINDS.values())
    assert BY_FAMILY[socket.AF_INET] is BY_FAMILY[socket.AF_INET6]
