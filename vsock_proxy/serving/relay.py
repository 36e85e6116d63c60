"""Passes bytes both ways between two connected stream sockets until both directions have ended.

Two independent directions, each with one buffer and a state: see direction.py.

poll() and not epoll: there are only two descriptors, and what they wait for changes often. With
poll() such a change costs no system call. poll() is level-triggered, so nothing has to be read
until EAGAIN. Every call uses MSG_DONTWAIT, so the mode of the sockets does not matter.

The relay treats both sides alike. Only the counters and the outcome need to know which of them is
the client. What a side can report, and what can be reported to it, depends on its transport: see
transports.py. The outcome follows from what was seen of both sides: see the table of outcome.py.
The kernel keeps one error for each socket, and reports it once, to the first call. So the relay
asks for it before another error replaces it.

Until a clean end, closing the sockets sends a reset, if their transport has one.
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

# After one direction has ended: seconds without a byte until the relay ends the other too.
HALF_CLOSE_TIMEOUT = 60.0

# A connection counts as lasting (see on_lasting) after this number of waits, or after
# silence.MOMENT. A connection of one exchange or a few is over before, and so does not pay for what
# only lasting ones need.
MOMENT_WAITS = 8

UP, DOWN = 0, 1

IN, OUT = select.POLLIN, select.POLLOUT
HUP = select.POLLHUP

Wait = Callable[[select.poll, Optional[float]], List[Tuple[int, int]]]


# The two usual outcomes, made once and not for each connection.
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
        half_close_timeout: after one direction has ended, seconds without a byte that end the
            connection.
        bulk_read: bytes in one read from which on a direction splices, if it can.
        on_lasting: called once when a connection turns out to last longer than a moment.
        on_half_close: called when one direction has ended and the other goes on.
        wait: calls poll(); if it raises, run() raises the same.
        """
        # Counts the bytes delivered to the endpoint and to the client; a caller may put shared
        # memory here instead.
        self.moved: Cells = array("Q", (0, 0))
        self._silence = Silence(half_close_timeout)
        self._on_lasting = on_lasting
        self._on_half_close = on_half_close
        self._wait = wait
        self._up = Direction(UP, bulk_read)
        self._down = Direction(DOWN, bulk_read)
        self._heard = 0

    def look(self, client: socket.SocketType) -> Presence:
        """Whether a client is still there. Reads what it has sent; run() delivers that first.

        So the look costs nothing if the client has sent something, as most have. The read is small:
        if the connection to the endpoint fails, its bytes stay in the buffer and keep their pages.
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
        """Relay until the connection has ended; the caller closes the sockets.

        idle_timeout: seconds without a byte in either direction that end it; 0: there is no limit.
        said: what has already been read from the endpoint.
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
        # In this order, so that the relay sees an endpoint's error before the client's end.
        poll.register(self._down.fd, IN)
        poll.register(self._client_fd, IN)

    def _begin_up(self) -> bool:
        heard, self._heard = self._heard, 0
        # Most clients have sent something before the endpoint accepts: try without waiting.
        return self._up.deliver(heard) if heard else self._up.pump()

    def _relay(self, rounds: Iterable[object]) -> Optional[Outcome]:
        """Relay until the connection has ended, or until there have been this number of waits."""
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
        """Act on the events of one poll()."""
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
        """Do what an event on one socket allows. It is the direction's source, the other's sink."""
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

        event: what poll() reported for the direction's source.
        """
        up, down = self._up, self._down
        if direction.state is FINISHING:
            opposite = down if direction is up else up
            if event & FAULT == HUP and opposite.state is READING and not direction.error:
                # Most connections end like this: one side has gone, and nothing waits for it.
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
        """Once both have ended, no other call reports a reset that came after an end."""
        for direction in (self._up, self._down):
            direction.error = direction.error or take_error(direction.sink)
        if self._up.error or self._down.error:
            self._note_faults()

    def _note_faults(self) -> None:
        """Keep the first error of each side, in the order in which the relay saw them."""
        for direction, source, sink in (
            (self._up, Side.CLIENT, Side.ENDPOINT),
            (self._down, Side.ENDPOINT, Side.CLIENT),
        ):
            error = direction.error
            if not error:
                continue
            lost = direction.state is LOST
            if lost and error.errno == errno.ENOTCONN:
                # vsock says this of a connection that is gone; the cause may be pending.
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
        """Wait for what the states need, and never for a lasting event that nothing acts on."""
        up, down = self._up, self._down
        if up.state in OVER or down.state in OVER:
            self._silence.half_close(_must_ask(up) or _must_ask(down))
        # poll() must keep reporting the endpoint before the client, so the client is added last.
        _register(self._poll, up.fd, 0, False)
        for direction, opposite in ((down, up), (up, down)):
            mask = IN if direction.state in READS else 0
            if opposite.state is WRITING:
                mask |= OUT
            # Even with an empty mask poll() reports that the source has gone.
            _register(self._poll, direction.fd, mask, mask or not direction.source_gone)

    def _endure(self) -> Optional[Outcome]:
        """After a wait without an event: do what is due."""
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
        """See whether a side that has ended is wholly gone by now, if no event reports that."""
        up, down = self._up, self._down
        for direction, opposite in ((up, down), (down, up)):
            if _must_ask(direction) and is_gone(direction.source, 0):
                _note_gone(direction, opposite)
                return self._settle(direction, 0)
        return None

    def _held(self) -> Held:
        """What the kernel still holds for the client and for the endpoint."""
        return unsent(self._up.fd), unsent(self._down.fd)


def _finish(direction: Direction, opposite: Direction, event: int) -> None:
    """Pass on the end of a direction, after all its bytes have been delivered."""
    direction.happens(END_PASSED_ON)
    # If nothing is left to come back, closing the socket passes the end on, one call cheaper.
    if opposite.state in OVER:
        return
    if is_gone(direction.source, event):
        _note_gone(direction, opposite)
        return
    try:
        direction.sink.shutdown(socket.SHUT_WR)
    except OSError:
        # It is gone. All bytes for it were sent before, and its own end is still to be read.
        direction.error = direction.error or take_error(direction.sink)


def _note_gone(direction: Direction, opposite: Direction) -> None:
    """The source is wholly gone: drop what comes for it, and still deliver what it sent.

    The pending error says why, if the transport reports that.
    """
    direction.source_gone = True
    opposite.lose_sink(take_error(direction.source))


def _must_ask(direction: Direction) -> bool:
    """Whether its source has ended and may go away for good without an event."""
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
