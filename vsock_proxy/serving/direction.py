"""One way of a relay, from a source to a sink, with one buffer and a state.

    READING     wants its source readable; what it reads it offers to the sink at once
    WRITING     the sink took less than was read: reads no more until the rest is gone, so a
                direction never holds more than its buffer
    DISCARDING  the sink is gone: reads on to see the source's end, and drops what it reads
    FINISHING   the source ended, and everything before that was delivered
    ENDED       that end was passed on to the sink
    LOST        the source was lost with an error: nothing more comes, not even an end

A happening changes the state by the table TRANSITIONS, and nothing else changes it. What the table
does not have cannot happen. The two directions do not know each other; the relay does what follows
from the states of both.

Every call uses MSG_DONTWAIT, so the mode of the sockets does not matter.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
import socket
from array import array
from typing import Dict, Optional, Union

from vsock_proxy.serving import splicing
from vsock_proxy.serving.splicing import Pipe
from vsock_proxy.serving.transports import BY_FAMILY, pays_to_splice, send_at_once

# Measured: smaller buffers cost more system calls a byte; larger ones leave the cache.
BUFFER_SIZE = 256 * 1024
# After a read of this size, what follows goes through a pipe, if that pays.
BULK_READ = 64 * 1024
# Once this much of a buffer was written to, its pages are worth the system call that frees them.
WORTH_RETURNING = 16 * 1024

CAN_SPLICE = splicing.available()

DONTWAIT = socket.MSG_DONTWAIT
# The fault of a sink that left before it had taken everything.
BROKEN_PIPE = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

# Two counters, in an array or in shared memory.
Cells = Union[memoryview, "array[int]"]


# IntEnum, because the hash of any other Enum is a function in Python.
class DirectionState(enum.IntEnum):
    """What a direction waits for; see the module's docstring."""

    READING = enum.auto()
    WRITING = enum.auto()
    DISCARDING = enum.auto()
    FINISHING = enum.auto()
    ENDED = enum.auto()
    LOST = enum.auto()


class Happening(enum.IntEnum):
    """What changes a direction's state.

    SINK_FULL: the sink took less than it was offered.
    REST_TAKEN: the sink has taken what was left.
    SINK_LOST: the sink takes nothing any more.
    SOURCE_ENDED: the source will send no more, and has said so.
    SOURCE_LOST: reading from the source failed.
    END_PASSED_ON: the end was passed on to the sink, or is about to be.
    """

    SINK_FULL = enum.auto()
    REST_TAKEN = enum.auto()
    SINK_LOST = enum.auto()
    SOURCE_ENDED = enum.auto()
    SOURCE_LOST = enum.auto()
    END_PASSED_ON = enum.auto()


READING, WRITING, DISCARDING, FINISHING, ENDED, LOST = DirectionState
SINK_FULL, REST_TAKEN, SINK_LOST, SOURCE_ENDED, SOURCE_LOST, END_PASSED_ON = Happening

TRANSITIONS: Dict[DirectionState, Dict[Happening, DirectionState]] = {
    READING: {
        SINK_FULL: WRITING,
        SINK_LOST: DISCARDING,
        SOURCE_ENDED: FINISHING,
        SOURCE_LOST: LOST,
    },
    WRITING: {
        SINK_FULL: WRITING,
        REST_TAKEN: READING,
        SINK_LOST: DISCARDING,
    },
    DISCARDING: {
        SINK_LOST: DISCARDING,
        SOURCE_ENDED: FINISHING,
        SOURCE_LOST: LOST,
    },
    FINISHING: {
        END_PASSED_ON: ENDED,
    },
    # Everything was delivered before, so the loss of the sink changes nothing here.
    ENDED: {
        SINK_LOST: ENDED,
    },
    LOST: {},
}
# States that read from the source.
READS = (READING, DISCARDING)
# States that deliver nothing more.
OVER = (DISCARDING, ENDED)


class Direction:
    """One way, from source to sink.

    source_gone: whether the source is known to be wholly gone; what it sent may still be read.
    """

    __slots__ = (
        "_bulk_read",
        "_has_spoken",
        "_index",
        "_map",
        "_may_delay",
        "_moved",
        "_pipe",
        "_recv_into",
        "_rest",
        "_send",
        "_splices",
        "_touched",
        "error",
        "fd",
        "sink",
        "source",
        "source_gone",
        "state",
        "view",
    )

    def __init__(self, index: int, bulk_read: int = BULK_READ) -> None:
        """
        index: which of the two counters counts what is delivered.
        bulk_read: bytes in one read from which on a pipe is used.
        """
        # An anonymous map costs no page until it is touched; a bytearray is zeroed at once.
        self._map = mmap.mmap(-1, BUFFER_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
        self._index = index
        self._bulk_read = bulk_read
        self._pipe: Optional[Pipe] = None
        # How many bytes of the map have been written to, and so take pages.
        self._touched = 0

    def begin(self, source: socket.SocketType, sink: socket.SocketType, moved: Cells) -> None:
        """Start over with the sockets of another connection."""
        self.source, self.sink = source, sink
        self.fd = source.fileno()
        self._recv_into = source.recv_into
        self._send = sink.send
        self._splices = CAN_SPLICE
        self.source_gone = self._has_spoken = False
        self._may_delay = BY_FAMILY[sink.family].delays
        self._rest: Optional[memoryview] = None
        self._moved = moved
        self.state: DirectionState = READING
        self.error: Optional[OSError] = None

    def happens(self, what: Happening) -> None:
        """Change to the state that this leads to."""
        self.state = TRANSITIONS[self.state][what]

    def pump(self) -> bool:
        """Read once and write once; False when the state changed."""
        pipe = self._pipe
        if pipe:
            if pipe.fill():
                return self._drain(pipe)
            if pipe.refused:
                self.close_pipe()
        try:
            size = self._recv_into(self.view, 0, DONTWAIT)
        except BlockingIOError:
            return True
        except OSError as error:
            return self._lose_source(error)
        if not size:
            lost = pipe and pipe.source_error()
            if lost:
                return self._lose_source(lost)
            self.happens(SOURCE_ENDED)
            return False
        return self.deliver(size)

    def hand_on(self, data: bytes) -> bool:
        """Write once what was read elsewhere; False when the state changed."""
        self.view[: len(data)] = data
        return self.deliver(len(data))

    def deliver(self, size: int) -> bool:
        """Write once what was read into the buffer; False when the state changed."""
        if size > self._touched:
            self._touched = size
        if self.state is DISCARDING:
            self.error = self.error or BROKEN_PIPE
            return True
        if self._may_delay:
            self._note_message()
        taken = self._offer(self.view[:size])
        if taken and size >= self._bulk_read and self._splices and not self._pipe:
            self._open_pipe()
        return taken

    def flush(self) -> None:
        """Write once what an earlier write left."""
        if self._rest is not None:
            if not self._offer(self._rest):
                return
            self._rest = None
        if self._pipe and self._pipe.held and not self._drain(self._pipe):
            return
        self.happens(REST_TAKEN)

    def lose_sink(self, error: Optional[OSError]) -> None:
        """The sink takes nothing any more: from now on drop what is read.

        Without an error it left in peace, unless something waits for it or still comes.
        """
        if not error and (self._rest is not None or (self._pipe and self._pipe.held)):
            error = BROKEN_PIPE
        self.error = error or self.error
        self._rest = None
        self.close_pipe()
        self.happens(SINK_LOST)

    def hurry(self) -> None:
        """From now on hold nothing back."""
        if self._may_delay:
            self._may_delay = False
            send_at_once(self.sink)

    def close_pipe(self) -> None:
        """Drop what is in the pipe, if there is one, and copy from now on."""
        if self._pipe:
            self._pipe.close()
            self._pipe = None
            self._splices = False

    def end(self) -> None:
        """Give back what the connection used; memory only if it was much."""
        self.close_pipe()
        if self._touched > WORTH_RETURNING:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    def _note_message(self) -> None:
        """The source has sent something: from the second time on, make the sink send at once.

        The kernel never holds a first write back (tcp_nagle_check() in net/ipv4/tcp_output.c).
        """
        if self._has_spoken:
            self.hurry()
        self._has_spoken = True

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
        self.happens(SINK_FULL)
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
        self.happens(SINK_FULL)
        return False

    def _copy_out(self, pipe: Pipe) -> bool:
        """Write what the pipe holds without splice(); False when the sink did not take it all."""
        while pipe.held:
            size = pipe.read_into(self.view)
            self._touched = max(self._touched, size)
            if not self._offer(self.view[:size]):
                return False
        self.close_pipe()
        return True

    def _open_pipe(self) -> None:
        """Go on through a pipe, if that pays and there can be one."""
        if not pays_to_splice(self.source, self.sink):
            self._splices = False
            return
        # _note_message() does not see what goes through a pipe.
        self.hurry()
        try:
            self._pipe = Pipe(self.source, self.sink)
        except OSError:
            # Copying needs neither descriptors nor the pages of a pipe.
            self._splices = False

    def _lose_source(self, error: OSError) -> bool:
        self.error = error
        self.happens(SOURCE_LOST)
        return False
