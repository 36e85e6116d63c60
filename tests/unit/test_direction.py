"""One way of a relay: what leads from which state to which, and what it does on the way."""

from __future__ import annotations

import errno
import socket
from array import array
from typing import Callable, Dict, Iterator, List, Tuple

import pytest

from tests.support.relaying import tcp_pair
from tests.support.sides import reset
from vsock_proxy.serving.direction import (
    BUFFER_SIZE,
    DISCARDING,
    END_PASSED_ON,
    ENDED,
    FINISHING,
    LOST,
    OVER,
    READING,
    REST_TAKEN,
    SINK_FULL,
    SINK_LOST,
    SOURCE_ENDED,
    SOURCE_LOST,
    TRANSITIONS,
    WRITING,
    Direction,
    DirectionState,
    Happening,
)

pytestmark = pytest.mark.hybrid_only  # the relay's suite is run on both

# The whole table once more, as a list of what can happen: the rest cannot.
LEADS: List[Tuple[DirectionState, Happening, DirectionState]] = [
    (READING, SINK_FULL, WRITING),
    (READING, SINK_LOST, DISCARDING),
    (READING, SOURCE_ENDED, FINISHING),
    (READING, SOURCE_LOST, LOST),
    (WRITING, SINK_FULL, WRITING),
    (WRITING, REST_TAKEN, READING),
    (WRITING, SINK_LOST, DISCARDING),
    (DISCARDING, SINK_LOST, DISCARDING),
    (DISCARDING, SOURCE_ENDED, FINISHING),
    (DISCARDING, SOURCE_LOST, LOST),
    (FINISHING, END_PASSED_ON, ENDED),
    (ENDED, SINK_LOST, ENDED),
]


@pytest.fixture
def direction() -> Iterator[Direction]:
    made = Direction(0)
    source, sink = socket.socketpair()
    made.begin(source, sink, array("Q", (0,)))
    yield made
    made.end()
    source.close()
    sink.close()


@pytest.mark.parametrize("state", DirectionState)
@pytest.mark.parametrize("what", Happening)
def test_what_happens_leads_where_the_table_says_or_cannot_happen(
    state: DirectionState, what: Happening, direction: Direction
) -> None:
    direction.state = state
    after = [to for before, happening, to in LEADS if (before, happening) == (state, what)]
    if after:
        direction.happens(what)
        assert [direction.state] == after
    else:
        with pytest.raises(KeyError):
            direction.happens(what)


def test_each_state_can_be_reached_and_left_but_for_the_last() -> None:
    reached = {to for state in TRANSITIONS for to in TRANSITIONS[state].values() if to is not state}
    left = {state for state in TRANSITIONS if set(TRANSITIONS[state].values()) - {state}}
    assert reached == set(DirectionState)
    assert left == set(DirectionState) - {ENDED, LOST}
    assert {DISCARDING, ENDED} == set(OVER)


class Way:
    """A direction between two connections, and the far ends of both."""

    def __init__(self) -> None:
        self.sender, source = socket.socketpair()
        sink, self.receiver = tcp_pair()
        self._near = source, sink
        self.moved = array("Q", (0, 0))
        self.direction = Direction(1)
        self.direction.begin(source, sink, self.moved)

    def send(self) -> None:
        self.sender.sendall(b"12345")

    def fill_sink(self) -> None:
        """Take from the source until the sink takes nothing more."""
        self.sender.setblocking(False)
        while self.direction.state is READING:
            try:
                self.sender.send(bytes(BUFFER_SIZE))
            except BlockingIOError:
                pass
            self.direction.pump()

    def empty_sink(self) -> None:
        self.receiver.setblocking(False)
        while self.direction.state is WRITING:
            try:
                self.receiver.recv(BUFFER_SIZE)
            except BlockingIOError:
                pass
            self.direction.flush()

    def end(self) -> None:
        self.sender.shutdown(socket.SHUT_WR)

    def reset_sink(self) -> None:
        reset(self.receiver)

    def pump(self) -> None:
        self.direction.pump()

    def lose_sink(self) -> None:
        self.direction.lose_sink(None)

    def close(self) -> None:
        self.direction.end()
        for sock in (self.sender, self.receiver, *self._near):
            sock.close()


@pytest.fixture
def way() -> Iterator[Way]:
    made = Way()
    yield made
    made.close()


Act = Callable[[Way], None]
# What is done, in which state that leaves the direction, and with which fault.
ACTS: Dict[str, Tuple[List[Act], DirectionState, int]] = {
    "nothing came": ([Way.pump], READING, 0),
    "bytes came": ([Way.send, Way.pump], READING, 0),
    "the sink is full": ([Way.fill_sink], WRITING, 0),
    "the sink is full and read again": ([Way.fill_sink, Way.empty_sink], READING, 0),
    "the source ended": ([Way.end, Way.pump], FINISHING, 0),
    "bytes and the end came": ([Way.send, Way.end, Way.pump], READING, 0),
    "bytes, then the end": ([Way.send, Way.end, Way.pump, Way.pump], FINISHING, 0),
    "the sink was reset": ([Way.reset_sink, Way.send, Way.pump], DISCARDING, errno.ECONNRESET),
    "the sink was lost in peace": ([Way.lose_sink], DISCARDING, 0),
    "the sink was lost while bytes wait": (
        [Way.fill_sink, Way.lose_sink],
        DISCARDING,
        errno.EPIPE,
    ),
    "the sink was lost and bytes come": (
        [Way.lose_sink, Way.send, Way.pump],
        DISCARDING,
        errno.EPIPE,
    ),
    "the sink was lost and the source ends": ([Way.lose_sink, Way.end, Way.pump], FINISHING, 0),
}


@pytest.mark.parametrize(("acts", "state", "fault"), ACTS.values(), ids=ACTS.keys())
def test_what_comes_leads_to_a_state_and_leaves_a_fault(
    acts: List[Act], state: DirectionState, fault: int, way: Way
) -> None:
    for act in acts:
        act(way)
    error = way.direction.error
    assert (way.direction.state, error.errno if error else 0) == (state, fault)


def test_a_source_that_was_reset_is_lost() -> None:
    source, far = tcp_pair()
    sink, receiver = socket.socketpair()
    direction = Direction(0)
    direction.begin(source, sink, array("Q", (0,)))
    reset(far)
    assert not direction.pump()
    assert direction.state is LOST
    assert direction.error
    assert direction.error.errno == errno.ECONNRESET
    for sock in (source, sink, receiver):
        sock.close()


def test_what_is_delivered_is_counted_and_what_is_dropped_is_not(way: Way) -> None:
    way.send()
    way.pump()
    assert list(way.moved) == [0, 5]
    way.lose_sink()
    way.send()
    way.pump()
    assert list(way.moved) == [0, 5]
