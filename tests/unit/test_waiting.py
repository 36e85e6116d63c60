"""What is seen of a client and of the master while the endpoint is waited for."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Callable, Dict, Iterator, List, Tuple

import pytest

from tests.support.relaying import tcp_pair
from tests.support.timing import SLOWNESS, wait_until
from vsock_proxy.serving.presence import GONE, HALF_CLOSED, SILENT, SPOKEN, Presence, presence_of
from vsock_proxy.serving.transports import reset_on_close
from vsock_proxy.serving.waiting import GONE_CHECK_INTERVAL, MOMENT, ClientGone, Meanwhile, Waiting

pytestmark = pytest.mark.hybrid_only  # what vsock tells is in ../program/test_connecting.py

LONG = 20.0 * SLOWNESS
Pair = Tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The client's end, and the worker's."""
    far, near = socket.socketpair()
    yield far, near
    far.close()
    near.close()


def nothing(far: socket.socket) -> None:
    """A client that waits."""


def speak(far: socket.socket) -> None:
    far.sendall(b"x")


def half_close(far: socket.socket) -> None:
    far.shutdown(socket.SHUT_WR)


def go(far: socket.socket) -> None:
    far.close()


def shut_both(far: socket.socket) -> None:
    far.shutdown(socket.SHUT_RDWR)


def take_nothing(far: socket.socket) -> None:
    far.shutdown(socket.SHUT_RD)


CLIENTS: Dict[str, Tuple[List[Callable[[socket.socket], None]], Presence]] = {
    "waits": ([nothing], SILENT),
    "speaks": ([speak], SPOKEN),
    "half-closes": ([half_close], HALF_CLOSED),
    "speaks and half-closes": ([speak, half_close], SPOKEN),
    "goes": ([go], GONE),
    "shuts both directions": ([shut_both], GONE),
    "half-closes and goes": ([half_close, go], GONE),
    "speaks and goes": ([speak, go], SPOKEN),
    "takes nothing but may still speak": ([take_nothing], SILENT),
}


@pytest.mark.parametrize(("acts", "presence"), CLIENTS.values(), ids=CLIENTS.keys())
def test_a_client_is_there_or_has_left_bytes_or_is_gone(
    acts: List[Callable[[socket.socket], None]], presence: Presence, pair: Pair
) -> None:
    far, near = pair
    for act in acts:
        act(far)
    assert presence_of(near) is presence
    assert presence_of(near) is presence, "looking changes nothing"


def reset(far: socket.socket) -> None:
    reset_on_close(far)
    far.close()


TCP_CLIENTS: Dict[str, Tuple[List[Callable[[socket.socket], None]], Presence]] = {
    **{name: CLIENTS[name] for name in ("waits", "speaks", "half-closes", "speaks and goes")},
    # It may as well wait for an answer.
    "goes": ([go], HALF_CLOSED),
    "resets": ([reset], GONE),
    "half-closes and resets": ([half_close, reset], GONE),
    "speaks and resets": ([speak, reset], SPOKEN),
}


@pytest.mark.parametrize(("acts", "presence"), TCP_CLIENTS.values(), ids=TCP_CLIENTS.keys())
def test_a_tcp_client_is_gone_if_it_has_reset(
    acts: List[Callable[[socket.socket], None]], presence: Presence
) -> None:
    far, near = tcp_pair()
    for act in acts:
        act(far)
    if acts != [nothing]:
        wait_until(lambda: select.select([near], [], [], 0)[0], "it is told")
    assert presence_of(near) is presence
    for sock in (far, near):
        sock.close()


class Scene:
    """One waiting, and what it has called."""

    def __init__(self, near: socket.socket, presence: Presence) -> None:
        self.calls: List[str] = []
        self.lifeline, self.master = os.pipe()
        self.wanted, self.giver = os.pipe()
        meanwhile = Meanwhile(
            self.lifeline,
            lambda: self.calls.append("lasts"),
            lambda: self.calls.append("orphaned"),
        )
        self.began = time.monotonic()
        self.waiting = Waiting(near, presence, meanwhile, self.began)
        self.waiting.poll.register(self.wanted)

    def wait(self, seconds: float) -> List[int]:
        return [fd for fd, _ in self.waiting.wait(time.monotonic() + seconds)]

    def wait_on(self, seconds: float) -> List[int]:
        """As whoever waits does: again and again."""
        until = time.monotonic() + seconds
        found: List[int] = []
        while not found and time.monotonic() < until:
            found = [fd for fd, _ in self.waiting.wait(until)]
        return found

    def close(self) -> None:
        for fd in (self.lifeline, self.master, self.wanted, self.giver):
            os.close(fd)


@pytest.fixture
def begin(pair: Pair) -> Iterator[Callable[[Presence], Scene]]:
    scenes: List[Scene] = []

    def make(presence: Presence) -> Scene:
        scenes.append(Scene(pair[1], presence))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()


Begin = Callable[[Presence], Scene]


def test_what_comes_within_a_moment_disturbs_nobody(begin: Begin) -> None:
    scene = begin(SILENT)
    os.write(scene.giver, b"x")
    assert scene.wait(LONG) == [scene.wanted]
    assert scene.calls == []


def test_beyond_a_moment_it_is_told_once(begin: Begin) -> None:
    scene = begin(SILENT)
    assert scene.wait(LONG) == []
    assert time.monotonic() - scene.began >= MOMENT
    for _ in range(3):
        scene.wait(0.01)
    os.write(scene.giver, b"x")
    assert scene.wait(LONG) == [scene.wanted]
    assert scene.calls == ["lasts"]


def test_the_end_of_the_master_is_told_once_and_the_waiting_goes_on(begin: Begin) -> None:
    scene = begin(SILENT)
    os.close(scene.master)
    scene.master = os.dup(scene.giver)
    assert scene.wait_on(3 * MOMENT) == []
    os.write(scene.giver, b"x")
    assert scene.wait_on(LONG) == [scene.wanted]
    assert scene.calls == ["lasts", "orphaned"]


ENDED_BY: Dict[str, Tuple[List[Callable[[socket.socket], None]], float]] = {
    "goes": ([go], 0.0),
    "half-closes and later goes": ([half_close, go], GONE_CHECK_INTERVAL),
}


@pytest.mark.parametrize(("acts", "takes"), ENDED_BY.values(), ids=ENDED_BY.keys())
def test_a_client_that_goes_ends_it(
    acts: List[Callable[[socket.socket], None]], takes: float, pair: Pair, begin: Begin
) -> None:
    scene = begin(SILENT)
    scene.wait(LONG)
    for act in acts:
        scene.wait_on(0.1)
        act(pair[0])
    began = time.monotonic()
    with pytest.raises(ClientGone):
        scene.wait_on(LONG)
    assert time.monotonic() - began < takes + 0.5 * SLOWNESS


@pytest.mark.parametrize("words_first", [True, False])
def test_a_client_that_goes_and_leaves_bytes_does_not_end_it(
    words_first: bool, pair: Pair, begin: Begin
) -> None:
    far, _ = pair
    if words_first:
        speak(far)
    scene = begin(SPOKEN if words_first else SILENT)
    scene.wait_on(2 * MOMENT)
    if not words_first:
        speak(far)
    go(far)
    before = time.process_time()
    assert scene.wait_on(1.5 * GONE_CHECK_INTERVAL) == []
    assert time.process_time() - before < 0.2 * GONE_CHECK_INTERVAL, "it does not spin"
    os.write(scene.giver, b"x")
    assert scene.wait_on(LONG) == [scene.wanted]
