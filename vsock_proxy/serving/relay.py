"""Bytes both ways between two connected stream sockets until both directions have ended.

Two independent directions, each with one buffer and a state: see direction.py.

poll() and not epoll: there are two descriptors, and what they wait for changes often, which costs
poll() no system call. Level-triggered, so nothing has to be read until EAGAIN. Every call is made
with MSG_DONTWAIT, so it does not matter in which mode the sockets are.

The client is a vsock or Unix socket, the upstream a TCP socket, and they differ in how they tell
that the peer is wholly gone: see _has_client_gone(). What was seen of both sides makes the outcome,
by the table of outcome.py. The kernel keeps one error for each socket, and tells it once, to
whatever call comes first: so it is asked for before another error takes its place.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import socket
import sys
import termios
import time
from array import array
from typing import Callable, Dict, Iterable, List, Optional, Tuple

from vsock_proxy.serving import splicing
from vsock_proxy.serving.direction import (
    BROKEN_PIPE,
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

CAN_SPLICE = splicing.available()
# Once one direction has ended, seconds without a byte until the other is ended too.
HALF_CLOSE_TIMEOUT = 60.0

# A connection lasts, for the purpose of on_lasting, once it had to be waited for so often, or as
# long as silence.MOMENT. What is over before, which is one exchange or a few, is spared what only
# lasting ones need.
MOMENT_WAITS = 8

UP, DOWN = 0, 1

AF_UNIX = socket.AF_UNIX
IN, OUT = select.POLLIN, select.POLLOUT
HUP = select.POLLHUP
ERR = select.POLLERR
FAULT = ERR | HUP
NO_INT = bytes(4)

Handle = Callable[[List[Tuple[int, int]]], Optional[Outcome]]
Wait = Callable[[select.poll, Optional[float]], List[Tuple[int, int]]]


# The outcome of an undisturbed day is made once, not once a connection.
CLIENT_CLOSED = Outcome(judge(CLOSED, OPEN, Side.CLIENT))


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
        self, client: socket.SocketType, upstream: socket.SocketType, idle_timeout: float = 0.0
    ) -> Outcome:
        """Relay until the connection has ended; the sockets are left to the caller to close.

        idle_timeout: seconds without a byte in either direction that end it; 0: none do.
        """
        self._begin(client, upstream, idle_timeout)
        try:
            outcome = None if self._begin_up() else self._settle(0)
            return (
                outcome or self._relay(range(MOMENT_WAITS), self._handle_first) or self._relay_on()
            )
        finally:
            self._up.end()
            self._down.end()

    def _begin(
        self, client: socket.SocketType, upstream: socket.SocketType, idle_timeout: float
    ) -> None:
        self._client, self._upstream = client, upstream
        self._client_fd, self._upstream_fd = source, sink = client.fileno(), upstream.fileno()
        self._client_tells = client.family == AF_UNIX
        up = down = None
        if CAN_SPLICE and client.family == AF_UNIX:
            down = upstream, client
        elif CAN_SPLICE:
            up = client, upstream
        self._up.begin(client, upstream, self.moved, up)
        self._down.begin(upstream, client, self.moved, down)
        self._client_gone = self._hurries = False
        self._first_end: Optional[Side] = None
        self._faults: Dict[Side, OSError] = {}
        self._idle_timeout = idle_timeout
        self._silence.begin(idle_timeout)
        self._poll = poll = select.poll()
        # In this order, so that an error of the endpoint is seen before the client's end.
        poll.register(sink, IN)
        poll.register(source, IN)

    def _begin_up(self) -> bool:
        heard, self._heard = self._heard, 0
        # A client has mostly spoken by the time the endpoint has answered: try without waiting.
        return self._up.deliver(heard) if heard else self._up.pump()

    def _relay(self, rounds: Iterable[object], handle: Handle) -> Optional[Outcome]:
        """Relay until the connection has ended, waiting at most so often."""
        wait, poll, silence = self._wait, self._poll, self._silence
        for _ in rounds:
            events = wait(poll, silence.pause)
            if events:
                outcome = handle(events)
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
        self._hurry()
        outcome = self._relay(itertools.repeat(None), self._handle)
        assert outcome
        return outcome

    def _last(self) -> None:
        self._silence.last()
        self._on_lasting()

    def _hurry(self) -> None:
        """From now on send at once, though something small is not acknowledged yet.

        A first write is never held back (tcp_nagle_check() in net/ipv4/tcp_output.c).
        """
        if not self._hurries:
            self._hurries = True
            self._upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _handle_first(self, events: List[Tuple[int, int]]) -> Optional[Outcome]:
        """The same for the first events, of which one may be the client's second message."""
        if (self._client_fd, IN) in events:
            self._hurry()
        return self._handle(events)

    def _handle(self, events: List[Tuple[int, int]]) -> Optional[Outcome]:
        """Do what one poll() told."""
        for fd, event in events:
            direction = self._up if fd == self._client_fd else self._down
            # Nearly every byte passes through this one pump().
            if event != IN or direction.state is not READING:
                self._advance(direction, event)
            elif direction.pump():
                continue
            outcome = self._settle(event)
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
            if direction is self._up:
                self._lose_client()
            elif not self._up.error:
                self._up.lose_sink(_take_error(self._upstream) or BROKEN_PIPE)

    def _settle(self, event: int) -> Optional[Outcome]:
        """After a change of state: pass ends on, see whether all is over, wait for what is next."""
        up, down = self._up, self._down
        if up.state is FINISHING and event & HUP and down.state is READING and not up.error:
            # The way most connections end: the client has gone, and nothing waits for it.
            return CLIENT_CLOSED
        if up.state is FINISHING:
            self._finish_up(event)
        if down.state is FINISHING:
            self._finish_down()
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

    def _finish_up(self, event: int) -> None:
        self._up.happens(END_PASSED_ON)
        # Where nothing is left to come down, closing the socket says it, one call cheaper.
        if self._down.state in OVER:
            return
        if self._has_client_gone(event):
            self._lose_client()
            return
        try:
            self._upstream.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._up.lose_sink(_take_error(self._upstream) or error)

    def _finish_down(self) -> None:
        self._down.happens(END_PASSED_ON)
        if self._up.state in OVER:
            return
        try:
            self._client.shutdown(socket.SHUT_WR)
        except OSError:
            # It is gone. All that came for it was sent before, and its own end is still to be read.
            self._down.error = _take_error(self._client)

    def _has_client_gone(self, event: int) -> bool:
        """Whether the client, which has ended, is wholly gone: nothing sent to it would arrive.

        On a Unix socket POLLHUP tells. On vsock, poll() does not tell a half-close from a full one,
        and a killed guest reads as a plain end; an empty send() tells
        (vsock_connectible_sendmsg() in net/vmw_vsock/af_vsock.c).
        """
        if event & FAULT:
            return True
        try:
            self._client.send(b"", DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def _lose_client(self) -> None:
        """The client is wholly gone.

        The pending error tells whether it left bytes unread; not on vsock, where nothing does.
        """
        self._client_gone = True
        self._down.lose_sink(_take_error(self._client))

    def _ask_for_errors(self) -> None:
        """Once both have ended: no call tells of a reset that came after an end any more."""
        self._up.error = self._up.error or _take_error(self._upstream)
        self._down.error = self._down.error or _take_error(self._client)
        self._note_faults()

    def _note_faults(self) -> None:
        """Keep the first error of each side, in the order in which they were seen."""
        up, down, faults = self._up, self._down, self._faults
        if up.state is LOST and up.error and up.error.errno == errno.ENOTCONN:
            # What vsock says of a connection that is gone; the cause may be pending.
            up.error = _take_error(self._client) or up.error
        if up.error:
            faults.setdefault(Side.CLIENT if up.state is LOST else Side.ENDPOINT, up.error)
        if down.error:
            faults.setdefault(Side.ENDPOINT if down.state is LOST else Side.CLIENT, down.error)

    def _outcome(self) -> Outcome:
        faults = self._faults
        client = _seen(Side.CLIENT in faults, self._up)
        endpoint = _seen(Side.ENDPOINT in faults, self._down)
        first = next(iter(faults), self._first_end) or Side.CLIENT
        end = judge(client, endpoint, first)
        error = faults.get(Side.CLIENT if end is End.CLIENT_RESET else Side.ENDPOINT)
        return Outcome(end, error.strerror or "" if error else "")

    def _watch(self) -> None:
        """Wait for what the states want, and never for a lasting event that nothing acts on."""
        up, down = self._up, self._down
        client = IN if up.state in READS else 0
        upstream = IN if down.state in READS else 0
        if down.state is WRITING:
            client |= OUT
        if up.state is WRITING:
            upstream |= OUT
        if up.state in OVER or down.state in OVER:
            self._silence.half_close(up.state is ENDED and not self._client_tells)
        # The client stays behind the endpoint, also where that was not waited for meanwhile.
        _register(self._poll, self._client_fd, 0, False)
        # Waiting for nothing still tells that a client has gone, or an endpoint that has ended.
        _register(self._poll, self._upstream_fd, upstream, upstream or down.state is ENDED)
        _register(self._poll, self._client_fd, client, client or not self._client_gone)

    def _endure(self) -> Optional[Outcome]:
        """Nothing has happened for a while: do what is due."""
        now, silence = time.monotonic(), self._silence
        if not silence.quiet:
            silence.fall_quiet(now)
        if silence.lasts(now):
            self._last()
        outcome = None
        if silence.asks(now) and self._has_client_gone(0):
            self._lose_client()
            outcome = self._settle(0)
        elif silence.looks(now) and silence.look(now, self._held()):
            idle = silence.limit == self._idle_timeout
            outcome = Outcome(End.IDLE if idle else End.HALF_CLOSED_IDLE)
        silence.set_next(now)
        return outcome

    def _held(self) -> Held:
        """What the kernel holds that the client and the endpoint have not taken yet."""
        return _unsent(self._client_fd), _unsent(self._upstream_fd)


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


def _take_error(sock: socket.SocketType) -> Optional[OSError]:
    """Take the error that the kernel keeps for a socket."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else None


def _unsent(fd: int) -> int:
    """Bytes that a peer has not taken: has not acknowledged on TCP, not read on a Unix socket.

    A Unix socket counts memory, a packet of up to 37 KiB at a time. vsock counts what it has not
    handed to the other side's kernel, since Linux 6.12, and says before that it cannot; that a
    vsock peer reads, only POLLOUT tells.
    """
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, NO_INT), sys.byteorder)
    except OSError:
        return 0
