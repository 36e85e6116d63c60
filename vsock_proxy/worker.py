"""A worker: accepts one connection, connects, relays, says how it ended, and waits for the next.

One at a time, so that a crash costs one connection and the number of workers is the limit. The
worker sleeps in epoll_wait() with the shared listener registered EPOLLEXCLUSIVE, so that a
connection wakes one idle worker instead of all. Beside it wait the worker's own signals, and the
lifeline, a pipe that ends when the master is gone.

On SIGTERM a worker closes its copy of the listener at once, ends its connection in peace and goes;
on SIGQUIT it ends it now.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import struct
import time
from typing import Optional, Tuple

from vsock_proxy.addresses import Address
from vsock_proxy.limiter import Limiter
from vsock_proxy.listener import Listener
from vsock_proxy.relay import Relay
from vsock_proxy.saturation import Alarm
from vsock_proxy.scoreboard import NO_CID, Field, Scoreboard, State
from vsock_proxy.settings import Settings
from vsock_proxy.signals import SignalPipe
from vsock_proxy.titles import set_title
from vsock_proxy.upstream import ConnectFailed, Upstream

# Out of descriptors or memory: seconds until the next try, others may have freed some.
ACCEPT_PAUSE = 0.2
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# All workers together write no more lines a second than this, one at least each.
LINES_PER_SECOND = 200
BURST = 50
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

log = logging.getLogger(__name__)

Peer = Tuple[int, int]


class _EndNow(BaseException):
    """Raised in the middle of whatever the worker does, by SIGQUIT."""


class Worker:
    """One worker process's life after the fork."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        listener: Listener,
        board: Scoreboard,
        upstream: Upstream,
        alarm: Alarm,
    ) -> None:
        self._number = number
        self._settings = settings
        self._listener = listener
        self._board = board
        self._upstream = upstream
        self._alarm = alarm
        self._slot = board.claim(number, os.getpid())
        self._relay = Relay(
            settings.idle_timeout,
            self._slot[Field.UP : Field.DOWN + 1],
            lambda: self._enter(State.HALF_CLOSED),
        )
        self._limiter = Limiter(max(1.0, LINES_PER_SECOND / settings.workers), BURST)
        self._stopping = False

    def run(self, lifeline: int) -> None:
        """Serve until told to stop; lifeline is a descriptor that is readable once the master
        is gone."""
        signals = SignalPipe([])
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGQUIT, _end_now)
        listener = self._listener.socket
        epoll = select.epoll()
        epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        epoll.register(lifeline, select.EPOLLIN)
        epoll.register(signals, select.EPOLLIN)
        listener_fd = listener.fileno()
        self._rest()
        try:
            while not self._stopping:
                for fd, _ in epoll.poll(None, 3):
                    if fd == listener_fd:
                        self._serve(listener)
                    elif fd == lifeline:
                        self._stopping = True
                    else:
                        signals.take()
        except _EndNow:
            pass

    def _stop(self, number: int, frame: object) -> None:
        # Closed here and not when the connection ends: a client that connects meanwhile must not
        # wait for a worker that will never come.
        self._stopping = True
        self._listener.close()
        if self._slot[Field.STATE] != State.IDLE:
            self._enter(State.DRAINING)

    def _enter(self, state: State) -> None:
        self._slot[Field.STATE] = state
        self._slot[Field.SINCE] = time.monotonic_ns()

    def _rest(self) -> None:
        self._enter(State.IDLE)
        set_title(f"worker {self._number} idle")

    def _serve(self, listener: socket.socket) -> None:
        try:
            client, peer = listener.accept()
        except BlockingIOError:
            # Another worker was quicker.
            return
        except OSError as error:
            self._accept_failed(error)
            return
        self._board.set_busy(self._number, True)
        if self._board.all_busy():
            self._alarm.raise_once()
        try:
            self._serve_client(client, peer or (NO_CID, 0))
        finally:
            self._board.set_busy(self._number, False)
            self._rest()

    def _accept_failed(self, error: OSError) -> None:
        if self._stopping:
            return
        self._say(logging.ERROR, "cannot accept: %s; going on", error.strerror)
        if error.errno in EXHAUSTED:
            time.sleep(ACCEPT_PAUSE)

    def _serve_client(self, client: socket.socket, peer: Peer) -> None:
        slot = self._slot
        slot[Field.PEER_CID], slot[Field.PEER_PORT] = peer
        self._enter(State.CONNECTING)
        began = time.monotonic()
        allowed = self._settings.allowed_cids
        if allowed is not None and peer[0] not in allowed:
            client.close()
            slot[Field.DENIED] += 1
            self._say(logging.WARNING, "%s refused: its CID is not allowed", peer_name(peer))
            return
        try:
            upstream, address = self._upstream.connect()
        except ConnectFailed as failure:
            client.close()
            slot[failure.cause] += 1
            self._say(
                logging.ERROR,
                "%s closed: cannot connect to %s: %s",
                peer_name(peer),
                self._settings.endpoint,
                failure,
            )
            return
        self._relay_client(client, upstream, peer, address, began)

    def _relay_client(
        self,
        client: socket.socket,
        upstream: socket.socket,
        peer: Peer,
        address: Address,
        began: float,
    ) -> None:
        slot = self._slot
        slot[Field.ADDRESS_HIGH], slot[Field.ADDRESS_LOW] = address.bits
        slot[Field.SERVED] += 1
        self._enter(State.DRAINING if self._stopping else State.RELAYING)
        set_title(f"worker {self._number} [{peer_name(peer)} -> {address}]")
        clean, reason, level = False, "proxy ends now", logging.WARNING
        try:
            outcome = self._relay.run(client, upstream)
            clean, level = outcome.clean, logging.INFO
            reason = f"{outcome.end.value} ({outcome.error})" if outcome.error else outcome.end.value
        finally:
            if not clean:
                # A connection that was cut must not look like one that was complete.
                upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.close()
            upstream.close()
            self._account(peer, address, began, reason, level)

    def _account(
        self, peer: Peer, address: Address, began: float, reason: str, level: int
    ) -> None:
        slot = self._slot
        up, down = slot[Field.UP], slot[Field.DOWN]
        if log.isEnabledFor(level):
            self._say(
                level,
                "%s -> %s ended: %d bytes up, %d bytes down, %.3f s, %s",
                peer_name(peer),
                address,
                up,
                down,
                time.monotonic() - began,
                reason,
            )
        slot[Field.TOTAL_UP] += up
        slot[Field.TOTAL_DOWN] += down
        slot[Field.UP] = slot[Field.DOWN] = 0
        self._relay.release()

    def _say(self, level: int, text: str, *values: object) -> None:
        """Log what a guest can cause, at a bounded rate."""
        if not self._limiter.allow(time.monotonic()):
            return
        refused = self._limiter.take_refused()
        if refused:
            log.warning("%d lines were left out", refused)
        log.log(level, text, *values)


def peer_name(peer: Peer) -> str:
    """`CID:PORT`, or `unix` for a hybrid vsock, which does not tell them."""
    return f"{peer[0]}:{peer[1]}" if peer[0] != NO_CID else "unix"


def _end_now(number: int, frame: Optional[object]) -> None:
    raise _EndNow
