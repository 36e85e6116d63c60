"""Bytes both ways between two connected stream sockets until both directions have ended.

Two independent directions, each with one buffer and a state:

    READING     wants its source readable; what it reads it offers to the sink at once
    WRITING     the sink took less than was read: reads nothing more until the rest is gone,
                so a direction never holds more than its buffer
    DISCARDING  the sink is gone: reads on, so that the source's end is seen, and drops it
    FINISHING   the source ended, and everything before that was delivered
    ENDED       that end was passed on to the sink

poll() and not epoll: there are two descriptors, and what they wait for changes often, which costs
poll() no system call. Level-triggered, so nothing has to be read until EAGAIN. Every call is made
with MSG_DONTWAIT, so it does not matter in which mode the sockets are.

The client is a vsock or Unix socket, the upstream a TCP socket, and they differ in how they tell
that the peer is wholly gone: see _client_fault().
"""

from __future__ import annotations

import enum
import errno
import math
import mmap
import os
import select
import socket
from array import array
from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple, Union

from vsock_proxy import splicing
from vsock_proxy.splicing import Pipe

# Measured: smaller buffers cost more system calls a byte; larger ones leave the cache.
BUFFER_SIZE = 256 * 1024
# Once as much came in one read, down to a Unix socket and up from vsock go through a pipe without
# being copied. Measured: 40 % of the processor time, and 88 %. Up from a Unix socket it costs;
# down to vsock each page would be a packet of its own (pipe_to_sendpage() in fs/splice.c, before
# Linux 6.5), and the rate falls by a tenth.
BULK_READ = 64 * 1024
CAN_SPLICE = splicing.available()
# Once one direction has ended, seconds without a byte until the other is ended too.
HALF_CLOSE_TIMEOUT = 60.0
# vsock raises no event when a peer that half-closed goes away for good (vsock_poll() in
# net/vmw_vsock/af_vsock.c), so every so many seconds it is asked.
GONE_CHECK_INTERVAL = 1.0

# A connection lasts, for the purpose of on_lasting, once it had to be waited for so often or so
# long. What is over before, which is one exchange or a few, is spared what only lasting ones need.
MOMENT_WAITS = 8
MOMENT_MS = 50

UP, DOWN = 0, 1

AF_UNIX = socket.AF_UNIX
DONTWAIT = socket.MSG_DONTWAIT
IN, OUT = select.POLLIN, select.POLLOUT
HUP = select.POLLHUP
FAULT = select.POLLERR | select.POLLHUP
GONE = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


# Two counters: an array, or a part of shared memory.
Cells = Union[memoryview, "array[int]"]


class State(enum.Enum):
    """What a direction waits for; see the module's text."""

    READING = enum.auto()
    WRITING = enum.auto()
    DISCARDING = enum.auto()
    FINISHING = enum.auto()
    ENDED = enum.auto()


READING, WRITING, DISCARDING, FINISHING, ENDED = State
OVER = (DISCARDING, ENDED)


class End(enum.Enum):
    """Why a connection ended, as the log says it."""

    CLIENT_CLOSED = "client closed"
    ENDPOINT_CLOSED = "endpoint closed"
    CLIENT_RESET = "client reset"
    ENDPOINT_RESET = "endpoint reset"
    IDLE = "idle timeout"
    HALF_CLOSED_IDLE = "nothing came after the half-close"
    CUT = "proxy ends now"


@dataclass(frozen=True)
class Outcome:
    """How a connection ended; error is the reset's errno in words."""

    end: End
    error: str = ""

    @property
    def clean(self) -> bool:
        """Whether both ends had everything: if not, the TCP side must see a reset, not an end."""
        return self.end in (End.CLIENT_CLOSED, End.ENDPOINT_CLOSED)

    def __str__(self) -> str:
        return f"{self.end.value} ({self.error})" if self.error else self.end.value


# The outcomes of an undisturbed day are made once, not once a connection.
CLIENT_CLOSED = Outcome(End.CLIENT_CLOSED)
ENDPOINT_CLOSED = Outcome(End.ENDPOINT_CLOSED)


class _Direction:
    """One way, from source to sink."""

    __slots__ = (
        "_index",
        "_map",
        "_moved",
        "_pipe",
        "_recv_into",
        "_rest",
        "_send",
        "_splices",
        "_view",
        "error",
        "source_lost",
        "state",
    )

    def __init__(self, index: int) -> None:
        # An anonymous map costs no page until it is touched; a bytearray is zeroed at once.
        self._map = mmap.mmap(-1, BUFFER_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._map)
        self._index = index
        self._pipe: Optional[Pipe] = None

    def begin(
        self,
        source: socket.SocketType,
        sink: socket.SocketType,
        moved: Cells,
        splices: Optional[Tuple[socket.SocketType, socket.SocketType]] = None,
    ) -> None:
        """Start over with the sockets of another connection.

        splices: both once more, if bytes in bulk may go through a pipe.
        """
        self._recv_into = source.recv_into
        self._send = sink.send
        self._splices = splices
        self._rest: Optional[memoryview] = None
        self._moved = moved
        self.state = READING
        self.error: Optional[OSError] = None
        self.source_lost = False

    def pump(self) -> bool:
        """Read once and write once; False when the state changed."""
        pipe = self._pipe
        if pipe:
            if pipe.fill():
                return self._drain(pipe)
            if pipe.refused:
                self.close_pipe()
        try:
            size = self._recv_into(self._view, 0, DONTWAIT)
        except BlockingIOError:
            return True
        except OSError as error:
            return self._lose_source(error)
        if not size:
            lost = pipe and pipe.source_error()
            if lost:
                return self._lose_source(lost)
            self.state = FINISHING
            return False
        if self.state is DISCARDING:
            return True
        taken = self._offer(self._view[:size])
        if taken and size >= BULK_READ and self._splices and not self._pipe:
            self._open_pipe(*self._splices)
        return taken

    def flush(self) -> None:
        """Write once of what an earlier write left."""
        if self._rest is not None:
            if not self._offer(self._rest):
                return
            self._rest = None
        if self._pipe and self._pipe.held and not self._drain(self._pipe):
            return
        self.state = READING

    def lose_sink(self, error: OSError) -> None:
        """The sink takes nothing any more: what is read from now on is dropped."""
        self.error = error
        self._rest = None
        self.close_pipe()
        if self.state is not ENDED:
            self.state = DISCARDING

    def close_pipe(self) -> None:
        """Drop what is in the pipe, if there is one, and copy from now on."""
        if self._pipe:
            self._pipe.close()
            self._pipe = None
            self._splices = None

    def release(self) -> None:
        """Give the memory back that the connection took, if it was much."""
        if self._moved[self._index] > mmap.PAGESIZE:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _offer(self, data: memoryview) -> bool:
        """Write once; False when the sink did not take it all."""
        size = len(data)
        try:
            sent = self._send(data, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose_sink(error)
            return False
        self._moved[self._index] += sent
        if sent == size:
            return True
        self._rest = data[sent:]
        self.state = WRITING
        return False

    def _drain(self, pipe: Pipe) -> bool:
        """Write once what the pipe holds; False when the sink did not take it all."""
        if not pipe.refused:
            try:
                sent = pipe.drain()
            except OSError as error:
                self.lose_sink(error)
                return False
            self._moved[self._index] += sent
            if not pipe.held:
                return True
        if pipe.refused:
            return self._copy_out(pipe)
        self.state = WRITING
        return False

    def _copy_out(self, pipe: Pipe) -> bool:
        """Write what the pipe holds without splice(); False when the sink did not take it all."""
        while pipe.held:
            size = pipe.read_into(self._view)
            if not self._offer(self._view[:size]):
                return False
        self.close_pipe()
        return True

    def _open_pipe(self, source: socket.SocketType, sink: socket.SocketType) -> None:
        """Go on through a pipe, if there can be one."""
        try:
            self._pipe = Pipe(source, sink)
        except OSError:
            # Copying needs neither descriptors nor the pages of a pipe.
            self._splices = None

    def _lose_source(self, error: OSError) -> bool:
        self.error = error
        self.source_lost = True
        return False


class Relay:
    """Relays one connection after the other, with the same two buffers."""

    def __init__(
        self,
        idle_timeout: float = 0.0,
        on_lasting: Callable[[], None] = lambda: None,
        on_half_close: Callable[[], None] = lambda: None,
    ) -> None:
        """
        idle_timeout: seconds without a byte in either direction that end a connection; 0: never.
        on_lasting: called once when a connection turns out not to be over in a moment.
        on_half_close: called when one direction has ended and the other goes on.
        """
        # Bytes delivered to the endpoint and to the client are added to these; shared memory may
        # take their place.
        self.moved: Cells = array("Q", (0, 0))
        self._idle_ms = math.ceil(idle_timeout * 1000)
        self._on_lasting = on_lasting
        self._on_half_close = on_half_close
        self._up = _Direction(UP)
        self._down = _Direction(DOWN)

    def run(self, client: socket.SocketType, upstream: socket.SocketType) -> Outcome:
        """Relay until the connection has ended; the sockets are left to the caller to close."""
        self._client, self._upstream = client, upstream
        self._client_fd, self._upstream_fd = source, sink = client.fileno(), upstream.fileno()
        up = down = None
        if CAN_SPLICE and client.family == AF_UNIX:
            down = upstream, client
        elif CAN_SPLICE:
            up = client, upstream
        self._up.begin(client, upstream, self.moved, up)
        self._down.begin(upstream, client, self.moved, down)
        self._first_end: Optional[Outcome] = None
        self._patience = self._idle_ms or None
        self._poll = poll = select.poll()
        poll.register(source, IN)
        poll.register(sink, IN)
        # A client has mostly spoken by the time the endpoint has answered: try without waiting.
        outcome = None if self._up.pump() else self._settle(0)
        outcome = outcome or self._relay_a_moment() or self._relay_on()
        self._up.close_pipe()
        self._down.close_pipe()
        return outcome

    def release(self) -> None:
        """Give back the memory that the last connection took."""
        self._up.release()
        self._down.release()

    def _relay_a_moment(self) -> Optional[Outcome]:
        """Relay until it is clear that the connection lasts longer than a single exchange."""
        wait, handle = self._poll.poll, self._handle
        for _ in range(MOMENT_WAITS):
            events = wait(MOMENT_MS)
            if not events:
                break
            outcome = handle(events)
            if outcome:
                return outcome
        self._on_lasting()
        return None

    def _relay_on(self) -> Outcome:
        """Relay until the connection has ended."""
        wait, handle = self._poll.poll, self._handle
        quiet = 0
        while True:
            patience = self._patience
            events = wait(patience)
            if events:
                quiet = 0
                outcome = handle(events)
            else:
                assert patience is not None
                quiet += patience
                outcome = self._endure(quiet)
            if outcome:
                return outcome

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

    def _advance(self, direction: _Direction, event: int) -> None:
        """Do what an event allows on one socket: the direction's source, the other's sink."""
        opposite = self._down if direction is self._up else self._up
        if opposite.state is WRITING and event & (OUT | FAULT):
            opposite.flush()
        if direction.state in (READING, DISCARDING):
            if event & (IN | FAULT):
                direction.pump()
        elif direction is self._up and event & FAULT:
            self._lose_client(event)

    def _settle(self, event: int) -> Optional[Outcome]:
        """After a change of state: pass ends on, see whether all is over, wait for what is next."""
        up, down = self._up, self._down
        if up.state is FINISHING and event & HUP and down.state is READING:
            # The way most connections end: the client has gone, and nothing waits for it.
            return CLIENT_CLOSED
        if up.source_lost:
            return Outcome(End.CLIENT_RESET, _words(up.error))
        if down.source_lost:
            return Outcome(End.ENDPOINT_RESET, _words(down.error))
        if up.state is FINISHING:
            self._finish_up(event)
        if down.state is FINISHING:
            self._finish_down()
        if up.state in OVER and down.state in OVER:
            return self._outcome()
        if self._first_end is None and (up.state is ENDED or down.state is ENDED):
            self._first_end = CLIENT_CLOSED if up.state is ENDED else ENDPOINT_CLOSED
            self._on_half_close()
        self._watch()
        return None

    def _finish_up(self, event: int) -> None:
        self._up.state = ENDED
        # Where nothing is left to come down, closing the socket says it, one call cheaper.
        if self._down.state in OVER or self._lose_client(event):
            return
        try:
            self._upstream.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._up.lose_sink(error)

    def _finish_down(self) -> None:
        self._down.state = ENDED
        if self._up.state in OVER:
            return
        try:
            self._client.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._down.lose_sink(error)

    def _lose_client(self, event: int) -> bool:
        """Whether the client is wholly gone, so that nothing sent to it would arrive."""
        error = GONE if event & HUP else self._client_fault(event)
        if error:
            self._down.lose_sink(error)
        return error is not None

    def _client_fault(self, event: int) -> Optional[OSError]:
        """Ask the client's socket whether it can still be written to.

        On a Unix socket POLLHUP tells. On vsock, poll() does not tell a half-close from a full one,
        and a killed guest reads as a plain end; the pending error and an empty send() tell
        (vsock_connectible_sendmsg() in net/vmw_vsock/af_vsock.c).
        """
        if event & select.POLLERR:
            code = self._client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                return OSError(code, os.strerror(code))
        try:
            self._client.send(b"", DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            return error
        return None

    def _outcome(self) -> Outcome:
        up, down = self._up, self._down
        if up.error:
            return Outcome(End.ENDPOINT_RESET, _words(up.error))
        if down.error and down.error.errno == errno.ECONNRESET:
            return Outcome(End.CLIENT_RESET, _words(down.error))
        return self._first_end or (CLIENT_CLOSED if up.state is ENDED else ENDPOINT_CLOSED)

    def _watch(self) -> None:
        """Wait for what the states want, and never for a lasting event that nothing acts on."""
        up, down = self._up, self._down
        client = IN if up.state in (READING, DISCARDING) else 0
        upstream = IN if down.state in (READING, DISCARDING) else 0
        if down.state is WRITING:
            client |= OUT
        if up.state is WRITING:
            upstream |= OUT
        self._patience = self._how_long_to_wait()
        # Waiting for nothing still tells that a client has gone, once.
        _register(self._poll, self._client_fd, client, client or not down.error)
        _register(self._poll, self._upstream_fd, upstream, upstream)

    def _limit(self) -> int:
        """Milliseconds of silence that end the connection; 0: none do."""
        if self._up.state in OVER or self._down.state in OVER:
            half_close_ms = math.ceil(HALF_CLOSE_TIMEOUT * 1000)
            return min(half_close_ms, self._idle_ms or half_close_ms)
        return self._idle_ms

    def _how_long_to_wait(self) -> Optional[int]:
        """Milliseconds to wait for an event."""
        if self._up.state is ENDED:
            return min(self._limit(), math.ceil(GONE_CHECK_INTERVAL * 1000))
        return self._limit() or None

    def _endure(self, quiet: int) -> Optional[Outcome]:
        """After so many milliseconds of silence: is it over?"""
        if self._up.state is ENDED and self._down.state not in OVER and self._lose_client(0):
            return self._settle(0)
        if quiet < self._limit():
            return None
        return Outcome(End.IDLE if quiet >= self._idle_ms > 0 else End.HALF_CLOSED_IDLE)


def _register(poll: select.poll, fd: int, mask: int, wanted: object) -> None:
    if wanted:
        poll.register(fd, mask)
        return
    try:
        poll.unregister(fd)
    except KeyError:
        pass


def _words(error: Optional[OSError]) -> str:
    return error.strerror if error and error.strerror else ""
