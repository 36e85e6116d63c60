"""Bytes both ways between two connected stream sockets until both directions have ended.

Two independent directions, each with one buffer and a state: see direction.py.

poll() and not epoll: there are two descriptors, and what they wait for changes often, which costs
poll() no system call. Level-triggered, so nothing has to be read until EAGAIN. Every call is made
with MSG_DONTWAIT, so it does not matter in which mode the sockets are.

Of the two sides the relay knows only which is called the client, for the counters and the outcome.
What a side can tell and be told is its transport's: see transports.py. What was seen of both sides
makes the outcome, by the table of outcome.py. The kernel keeps one error for each socket, and tells
it once, to whatever call comes first: so it is asked for before another error takes its place.

Until a clean end, closing the sockets is a reset, where their transport has one.
"""

from __future__ import annotations

import errno
import itertools
import select
import socket
import time
from array import array
from typing import Callable, Dict, Iterable, List, Optional, Tuple

from vsock_proxy.serving.direction import (
    BULK_READ,
    DONTWAIT,
    END_PASSED_ON,
    ENDED,
    FINISHING,
    LOST,
    OVER,
    READING,
    READS,
    WORTH_RETURNING,
    WRITING,
    Cells,
    Direction,
)
from vsock_proxy.serving.outcome import BROKEN, CLOSED, OPEN, End, Outcome, Seen, Side, judge
from vsock_proxy.serving.presence import Presence, presence_of
from vsock_proxy.serving.silence import Held, Silence
from vsock_proxy.serving.transports import (
    FAULT,
    end_on_close,
    is_gone,
    reset_on_close,
    take_error,
    transport_of,
    unsent,
)

# Once one direction has ended, seconds without a byte until the other is ended too.
HALF_CLOSE_TIMEOUT = 60.0

# A connection lasts, for the purpose of on_lasting, once it had to be waited for so often, or as
# long as silence.MOMENT. What is over before, which is one exchange or a few, is spared what only
# lasting ones need.
MOMENT_WAITS = 8

UP, DOWN = 0, 1

IN, OUT = select.POLLIN, select.POLLOUT
HUP = select.POLLHUP

Wait = Callable[[select.poll, Optional[float]], List[Tuple[int, int]]]


# The outcome of an undisturbed day is made once, not once a connection.
CLIENT_CLOSED = Outcome(judge(CLOSED, OPEN, Side.CLIENT))
ENDPOINT_CLOSED = Outcome(judge(OPEN, CLOSED, Side.ENDPOINT))


def _wait(poll: select.poll, timeout: Optional[float]) -> List[Tuple[int, int]]:
    return poll.poll(timeout)


class Relay:
    """Relays one connection after the other, with the same two buffers."""

    def __init__(
        self,
        half_close_timeout: float = HALF_CLOSE_TIMEOUT,
        bulk_read: int = BULK_READ,
        on_lasting: Callable[[], None] = lambda: None,
        on_half_close: Callable[[], None] = lambda: None,
        wait: Wait = _wait,
    ) -> None:
        """
        half_close_timeout: seconds without a byte that end a connection of which one direction
            has ended.
        bulk_read: bytes in one read from which on a direction splices, where it can.
        on_lasting: called once when a connection turns out not to be over in a moment.
        on_half_close: called when one direction has ended and the other goes on.
        wait: calls poll(); what it raises ends run().
        """
        # Bytes delivered to the endpoint and to the client are added to these; shared memory may
        # take their place.
        self.moved: Cells = array("Q", (0, 0))
        self._silence = Silence(half_close_timeout)
        self._on_lasting = on_lasting
        self._on_half_close = on_half_close
        self._wait = wait
        self._up = Direction(UP, bulk_read)
        self._down = Direction(DOWN, bulk_read)
        self._heard = 0

    def look(self, client: socket.SocketType) -> Presence:
        """Whether a client is still there. What it has said is read, and run() delivers it first.

        So the look costs nothing where the client has spoken, as most have. No more is read than
        may stay in the buffer if there is never a connection to deliver it by.
        """
        self._heard = 0
        try:
            self._heard = client.recv_into(self._up.view, WORTH_RETURNING, DONTWAIT)
        except BlockingIOError:
            return Presence.SILENT
        except OSError:
            return Presence.GONE
        return Presence.SPOKEN if self._heard else presence_of(client)

    def run(
        self,
        client: socket.SocketType,
        upstream: socket.SocketType,
        idle_timeout: float = 0.0,
        said: bytes = b"",
    ) -> Outcome:
        """Relay until the connection has ended; the sockets are left to the caller to close.

        idle_timeout: seconds without a byte in either direction that end it; 0: none do.
        said: what has been read of the endpoint already.
        """
        reset_on_close(client, upstream)
        self._begin(client, upstream, idle_timeout)
        try:
            outcome = None if self._begin_up() else self._settle(self._up, 0)
            if said and not outcome and not self._down.hand_on(said):
                outcome = self._settle(self._down, 0)
            outcome = outcome or self._relay(range(MOMENT_WAITS)) or self._relay_on()
        finally:
            self._up.end()
            self._down.end()
        if outcome.clean:
            end_on_close(client, upstream)
        return outcome

    def _begin(
        self, client: socket.SocketType, upstream: socket.SocketType, idle_timeout: float
    ) -> None:
        self._up.begin(client, upstream, self.moved)
        self._down.begin(upstream, client, self.moved)
        self._client_fd = self._up.fd
        self._first_end: Optional[Side] = None
        self._faults: Dict[Side, OSError] = {}
        self._idle_timeout = idle_timeout
        self._silence.begin(idle_timeout)
        self._poll = poll = select.poll()
        # In this order, so that an error of the endpoint is seen before the client's end.
        poll.register(self._down.fd, IN)
        poll.register(self._client_fd, IN)

    def _begin_up(self) -> bool:
        heard, self._heard = self._heard, 0
        # A client has mostly spoken by the time the endpoint has answered: try without waiting.
        return self._up.deliver(heard) if heard else self._up.pump()

    def _relay(self, rounds: Iterable[object]) -> Optional[Outcome]:
        """Relay until the connection has ended, waiting at most so often."""
        wait, poll, silence = self._wait, self._poll, self._silence
        for _ in rounds:
            events = wait(poll, silence.pause)
            if events:
                outcome = self._handle(events)
                if silence.quiet:
                    silence.wake()
            else:
                outcome = self._endure()
            if outcome:
                return outcome
        return None

    def _relay_on(self) -> Outcome:
        """Relay until the connection has ended."""
        if not self._silence.lasting:
            self._last()
        self._up.hurry()
        self._down.hurry()
        outcome = self._relay(itertools.repeat(None))
        assert outcome
        return outcome

    def _last(self) -> None:
        self._silence.last()
        self._on_lasting()

    def _handle(self, events: List[Tuple[int, int]]) -> Optional[Outcome]:
        """Do what one poll() told."""
        for fd, event in events:
            direction = self._up if fd == self._client_fd else self._down
            # Nearly every byte passes through this one pump().
            if event != IN or direction.state is not READING:
                self._advance(direction, event)
            elif direction.pump():
                continue
            outcome = self._settle(direction, event)
            if outcome:
                return outcome
        return None

    def _advance(self, direction: Direction, event: int) -> None:
        """Do what an event allows on one socket: the direction's source, the other's sink."""
        opposite = self._down if direction is self._up else self._up
        if opposite.state is WRITING and event & (OUT | FAULT):
            opposite.flush()
        if direction.state in READS:
            if event & (IN | FAULT):
                direction.pump()
        elif event & FAULT:
            _note_gone(direction, opposite)

    def _settle(self, direction: Direction, event: int) -> Optional[Outcome]:
        """After a change of state: pass ends on, see whether all is over, wait for what is next.

        event: what the source of the direction was told to be ready for.
        """
        up, down = self._up, self._down
        if direction.state is FINISHING:
            opposite = down if direction is up else up
            if event & FAULT == HUP and opposite.state is READING and not direction.error:
                # The way most connections end: one side has gone, and nothing waits for it.
                return CLIENT_CLOSED if direction is up else ENDPOINT_CLOSED
            _finish(direction, opposite, event)
        if up.error or down.error:
            self._note_faults()
        if up.state is ENDED and down.state is ENDED:
            self._ask_for_errors()
        if up.state is LOST or down.state is LOST or (up.state in OVER and down.state in OVER):
            return self._outcome()
        if self._first_end is None and (up.state is ENDED or down.state is ENDED):
            self._first_end = Side.CLIENT if up.state is ENDED else Side.ENDPOINT
            self._on_half_close()
        self._watch()
        return None

    def _ask_for_errors(self) -> None:
        """Once both have ended: no call tells of a reset that came after an end any more."""
        for direction in (self._up, self._down):
            direction.error = direction.error or take_error(direction.sink)
        if self._up.error or self._down.error:
            self._note_faults()

    def _note_faults(self) -> None:
        """Keep the first error of each side, in the order in which they were seen."""
        for direction, source, sink in (
            (self._up, Side.CLIENT, Side.ENDPOINT),
            (self._down, Side.ENDPOINT, Side.CLIENT),
        ):
            error = direction.error
            if not error:
                continue
            lost = direction.state is LOST
            if lost and error.errno == errno.ENOTCONN:
                # What vsock says of a connection that is gone; the cause may be pending.
                error = take_error(direction.source) or error
            self._faults.setdefault(source if lost else sink, error)

    def _outcome(self) -> Outcome:
        faults = self._faults
        if not faults and self._up.state is ENDED and self._down.state is ENDED:
            return ENDPOINT_CLOSED if self._first_end is Side.ENDPOINT else CLIENT_CLOSED
        client = _seen(Side.CLIENT in faults, self._up)
        endpoint = _seen(Side.ENDPOINT in faults, self._down)
        first = next(iter(faults), self._first_end) or Side.CLIENT
        end = judge(client, endpoint, first)
        error = faults.get(Side.CLIENT if end is End.CLIENT_RESET else Side.ENDPOINT)
        return Outcome(end, error.errno or 0 if error else 0)

    def _watch(self) -> None:
        """Wait for what the states want, and never for a lasting event that nothing acts on."""
        up, down = self._up, self._down
        if up.state in OVER or down.state in OVER:
            self._silence.half_close(_must_ask(up) or _must_ask(down))
        # The client stays behind the endpoint, also where that was not waited for meanwhile.
        _register(self._poll, up.fd, 0, False)
        for direction, opposite in ((down, up), (up, down)):
            mask = IN if direction.state in READS else 0
            if opposite.state is WRITING:
                mask |= OUT
            # Waiting for nothing still tells that the source has gone.
            _register(self._poll, direction.fd, mask, mask or not direction.source_gone)

    def _endure(self) -> Optional[Outcome]:
        """Nothing has happened for a while: do what is due."""
        now, silence = time.monotonic(), self._silence
        if not silence.quiet:
            silence.fall_quiet(now)
        if silence.lasts(now):
            self._last()
        outcome = None
        if silence.asks(now):
            outcome = self._ask_who_ended()
        if not outcome and silence.looks(now) and silence.look(now, self._held()):
            idle = silence.limit == self._idle_timeout
            outcome = Outcome(End.IDLE if idle else End.HALF_CLOSED_IDLE)
        silence.set_next(now)
        return outcome

    def _ask_who_ended(self) -> Optional[Outcome]:
        """See whether a side that has ended is wholly gone by now, where that must be asked."""
        up, down = self._up, self._down
        for direction, opposite in ((up, down), (down, up)):
            if _must_ask(direction) and is_gone(direction.source, 0):
                _note_gone(direction, opposite)
                return self._settle(direction, 0)
        return None

    def _held(self) -> Held:
        """What the kernel holds that the client and the endpoint have not taken yet."""
        return unsent(self._up.fd), unsent(self._down.fd)


def _finish(direction: Direction, opposite: Direction, event: int) -> None:
    """Pass on the end of a direction, all of which was delivered."""
    direction.happens(END_PASSED_ON)
    # Where nothing is left to come back, closing the socket says it, one call cheaper.
    if opposite.state in OVER:
        return
    if is_gone(direction.source, event):
        _note_gone(direction, opposite)
        return
    try:
        direction.sink.shutdown(socket.SHUT_WR)
    except OSError:
        # It is gone. All that came for it was sent before, and its own end is still to be read.
        direction.error = direction.error or take_error(direction.sink)


def _note_gone(direction: Direction, opposite: Direction) -> None:
    """The source is wholly gone: what comes for it is dropped, and what it sent still delivered.

    The pending error tells why, where the transport does.
    """
    direction.source_gone = True
    opposite.lose_sink(take_error(direction.source))


def _must_ask(direction: Direction) -> bool:
    """Whether its source, which has ended, may go away for good unnoticed."""
    return direction.state is ENDED and transport_of(direction.source).must_be_asked


def _register(poll: select.poll, fd: int, mask: int, wanted: object) -> None:
    if wanted:
        poll.register(fd, mask)
        return
    try:
        poll.unregister(fd)
    except KeyError:
        pass


def _seen(broken: bool, direction: Direction) -> Seen:
    """What was seen of the source of a direction."""
    if broken:
        return BROKEN
    return CLOSED if direction.state is ENDED else OPEN
