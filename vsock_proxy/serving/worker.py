"""A worker: accepts one connection, connects, relays, says how it ended, and waits for the next.

One at a time, so that a crash costs one connection and the number of workers is the limit. The
worker sleeps in epoll_wait(). The shared listeners are registered there with EPOLLEXCLUSIVE, so a
connection wakes one idle worker instead of all. The same call waits for the worker's own signals
and for the lifeline, which ends with the master. A worker without a master accepts no more. If
several listeners have clients, the worker serves one client of each. The kernel alone would name
the same listener first again and again (ep_send_events() in fs/eventpoll.c).

On SIGHUP a worker updates its name: the name contains the service only if there are several. The
title follows as soon as the worker waits. The worker also looks at each listener: a worker of the
pool that this one replaces may have died after a client had woken it.

On SIGTERM a worker closes its copies of the listeners at once, ends its connection in peace and
exits. On SIGQUIT it ends the connection now, but only at a place where it waits. If the master dies
during a connection, the kernel sends SIGTERM.

A retired pool has a successor, whose workers wait on the same listeners. There SIGTERM must lose no
client. A client wakes only one worker, even if a signal wakes that worker too; its epoll_wait()
then reports both. So a worker that gets SIGTERM while it waits first accepts the clients that
epoll_wait() has reported, and then closes its listeners.

Before the first byte moves, TCP sockets are set to send a reset when they are closed, even if the
worker dies and the kernel closes them. The relay undoes this only for a clean end. A client that
has to wait for its endpoint gets the same setting.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Tuple

from vsock_proxy.endpoint.addresses import Address
from vsock_proxy.observing.closing import (
    ENDED,
    NAMED,
    NAMED_OF_SEVERAL,
    NANOSECONDS,
    connection_name,
)
from vsock_proxy.observing.limiter import Limiter
from vsock_proxy.observing.measures import Measures, Tally
from vsock_proxy.observing.peers import TCP_PEER, UNIX_PEER, Peer, peer_name
from vsock_proxy.observing.report import Staff, worker_name
from vsock_proxy.observing.saturation import Alarm
from vsock_proxy.observing.scoreboard import (
    ADDRESS_HIGH,
    ADDRESS_LOW,
    CLIENT_GONE,
    CONNECTIONS,
    DENIED,
    DOWN_BEFORE,
    DRAINS,
    FAILED,
    FAILURES,
    PEER_HIGH,
    PEER_KIND,
    PEER_LOW,
    PEER_PORT,
    ROUTE,
    SERIAL,
    SERVED,
    SINCE,
    STATE,
    TOTAL_DOWN,
    TOTAL_UP,
    UP_BEFORE,
    Scoreboard,
    State,
)
from vsock_proxy.observing.untold import LEFT_OUT, NOT_ACCEPTED, Untold
from vsock_proxy.process.interpreter import Socket
from vsock_proxy.process.kernel import EPOLLEXCLUSIVE
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Signals, block, ignore, unblock
from vsock_proxy.process.titles import set_title
from vsock_proxy.serving.interruption import EndNow, Interruption
from vsock_proxy.serving.keepalive import KeepAlive
from vsock_proxy.serving.outcome import End, Outcome
from vsock_proxy.serving.race import ConnectFailed
from vsock_proxy.serving.relay import Relay
from vsock_proxy.serving.route import Route, Where
from vsock_proxy.serving.transports import reset_on_close
from vsock_proxy.serving.waiting import ClientGone, Meanwhile

# Milliseconds between an accept() that failed and the next. The listener may stay readable, so a
# worker that did not pause would spin.
ACCEPT_PAUSE_MS = 200
IDLE, CONNECTING, RELAYING, HALF_CLOSED = (
    int(state)
    for state in (
        State.IDLE,
        State.CONNECTING,
        State.RELAYING,
        State.HALF_CLOSED,
    )
)

log = logging.getLogger(__name__)

CUT = Outcome(End.CUT)


@dataclass(frozen=True)
class Duty:
    """What the workers of one pool have in common.

    own: whether these are the own workers of one service. Their names then contain it.
    measures: what is counted for each service; None if nobody asks for it.
    """

    routes: Tuple[Route, ...]
    board: Scoreboard
    alarm: Alarm
    own: bool = False
    measures: Optional[Measures] = None

    def name_of(self, number: int) -> str:
        """The name of a worker: `2`, or `8001/2` if there are several services."""
        return worker_name(self.routes[0].name if self._is_named else None, number)

    def staff(self) -> Staff:
        """The workers as they are now, to be shown in a table."""
        names = tuple(route.name for route in self.routes)
        endpoints = tuple(route.endpoint for route in self.routes)
        rows = tuple(self.board.rows())
        return Staff(names, self._is_named, self.board.retired, rows, endpoints)

    @property
    def _is_named(self) -> bool:
        """Whether the names of workers contain their service."""
        return self.own and self.board.several


class Worker:
    """What a worker process does. Made before the fork, so all workers share what never changes."""

    def __init__(self, signals: Signals, lifeline: Lifeline, untold: Untold) -> None:
        self._signals = signals
        self._lifeline = lifeline
        self._untold = untold
        self._keepalive = KeepAlive()
        self._keepalive.catch_alarms()
        self._interruption = Interruption()
        self._relay = Relay(
            on_lasting=self._connection_lasts,
            on_half_close=self._half_closed,
            wait=self._interruption.poll,
        )
        self._limiter = Limiter()
        self._meanwhile = Meanwhile(lifeline.reader, self._connecting_lasts, self._stop)
        self._logs_ends = log.isEnabledFor(logging.INFO)
        self._stopping = False
        self._shown = ""
        self._name: Callable[[], None]
        self._peer = UNIX_PEER
        self._sides: Tuple[Socket, ...]
        self._address: Where
        self._duty: Duty
        self._route: Route
        self._number: int
        self._slot: memoryview
        self._tally: Optional[Tally] = None

    def run(self, duty: Duty, number: int, name: Callable[[], None]) -> None:
        """Work as the worker with this number until a signal says to stop.

        name: called whenever the worker's name for the log may have changed.
        """
        name()
        self._name = name
        epoll = self._begin(duty, number)
        duty.alarm.tell_serving()
        signals, lifeline_fd = self._signals, self._lifeline.reader
        routes = {route.listener.sock.fileno(): route for route in duty.routes}
        most = len(routes) + 2
        while not self._stopping:
            ready = [fd for fd, _ in epoll.poll(None, most)]
            if lifeline_fd in ready:
                return
            # In this order: the first listener is the one that the kernel woke this worker for.
            for fd in ready:
                if fd in routes:
                    self._serve(routes[fd])
                else:
                    # Signals that came before _begin() was done.
                    for caught in signals.take():
                        self._interrupt(caught)
                        if caught == signal.SIGHUP and not self._stopping:
                            self._look_around()

    def _look_around(self) -> None:
        self._show("idle")
        for route in self._duty.routes:
            self._serve(route)

    def rehearse(self, duty: Duty) -> None:
        """In the master, before the first fork: do what every worker does first.

        All workers then share what the interpreter caches during it.
        """
        # A signal that comes now is for the master, not for a worker.
        block()
        self._begin(duty, 1).close()
        duty.board.vacate(1)
        self._signals.on_interrupt = ignore
        unblock()
        self._shown = ""

    def _begin(self, duty: Duty, number: int) -> select.epoll:
        """Do everything that comes before the wait for the first connection."""
        self._duty, self._number = duty, number
        self._slot = duty.board.claim(number, os.getpid())
        self._relay.moved = self._slot[TOTAL_UP : TOTAL_DOWN + 1]
        self._turn_to(self._slot[ROUTE])
        epoll = select.epoll()
        # epoll reports what is ready already in this order, so a worker that must end accepts none.
        epoll.register(self._signals.reader, select.EPOLLIN)
        epoll.register(self._lifeline.reader, select.EPOLLIN)
        for route in duty.routes:
            epoll.register(route.listener.sock, select.EPOLLIN | EPOLLEXCLUSIVE)
        # Not earlier: a signal closes the listeners.
        self._signals.on_interrupt = self._interrupt
        self._rest()
        return epoll

    def _interrupt(self, number: int) -> None:
        if number == signal.SIGTERM and self._duty.board.retired and self._slot[STATE] == IDLE:
            # A client may have been accepted already; then _serve() closes the listeners.
            self._stopping = True
        elif number in (signal.SIGTERM, signal.SIGQUIT):
            self._stop()
        elif number == signal.SIGHUP:
            self._name()
        if number == signal.SIGQUIT:
            self._interruption.want()

    def _stop(self) -> None:
        # Closed here and not at the end of the connection: a client that connects in between must
        # not wait for a worker that will never come.
        self._stopping = True
        for route in self._duty.routes:
            route.listener.close()
        self._slot[DRAINS] = True
        if self._duty.board.retired:
            # It waits until no worker holds a listener of a retired pool.
            self._duty.alarm.wake_master()

    def _half_closed(self) -> None:
        self._slot[STATE] = HALF_CLOSED

    def _connecting_lasts(self) -> None:
        # If the worker dies now, the client must see a reset: an end would be an empty answer.
        reset_on_close(*self._sides)
        self._show(f"connecting [{self._client()} -> {self._route.endpoint}]")

    def _connection_lasts(self) -> None:
        """Do what only a connection that lasts needs."""
        self._keepalive.begin(*self._sides)
        self._lifeline.signal_when_cut(signal.SIGTERM)
        self._show(f"[{self._client()} -> {self._address}]")

    def _client(self) -> str:
        """Who is served, and by which service if there are several."""
        name = peer_name(self._peer)
        return f"{self._route.name}: {name}" if self._duty.board.several else name

    def _show(self, text: str) -> None:
        set_title(f"worker {self._duty.name_of(self._number)} {text}")
        self._shown = text

    def _rest(self) -> None:
        self._slot[STATE] = IDLE
        self._slot[SINCE] = time.monotonic_ns()
        if self._shown != "idle":
            self._show("idle")

    def _serve(self, route: Route) -> None:
        try:
            client, peer = route.listener.accept()
        except BlockingIOError:
            # Another worker was quicker.
            return
        except OSError as error:
            self._accept_failed(error)
            return
        began = time.monotonic_ns()
        duty, slot, number = self._duty, self._slot, self._number
        board = duty.board
        board.set_busy(number, True)
        if board.all_busy():
            duty.alarm.raise_once()
        # In this order: a reader of the measures sees by the first that the second is new.
        slot[CONNECTIONS] += 1
        if route is not self._route:
            self._turn_to(duty.routes.index(route))
        slot[STATE] = CONNECTING
        slot[SINCE] = began
        slot[PEER_KIND], slot[PEER_PORT] = peer[0], peer[1]
        if peer[0] == TCP_PEER:
            slot[PEER_HIGH], slot[PEER_LOW] = peer[2], peer[3]
        if self._stopping:
            self._stop()
        try:
            self._serve_client(client, peer)
        finally:
            board.set_busy(number, False)
            self._rest()

    def _turn_to(self, place: int) -> None:
        """From now on serve the pool's service at this place."""
        measures = self._duty.measures
        self._route = self._duty.routes[place]
        if measures is None:
            self._slot[ROUTE] = place
        else:
            self._tally = measures.turn(self._number, place)

    def _accept_failed(self, error: OSError) -> None:
        if self._stopping:
            return
        self._untold.count(NOT_ACCEPTED, code=error.errno or 0)
        # A signal and the master's death end the pause too; the main loop then acts on them.
        pause = select.poll()
        pause.register(self._signals.reader, select.POLLIN)
        pause.register(self._lifeline.reader, select.POLLIN)
        pause.poll(ACCEPT_PAUSE_MS)

    def _serve_client(self, client: Socket, peer: Peer) -> None:
        route = self._route
        self._peer = peer
        allowed = route.allowed_cids
        if allowed is not None and peer[0] not in allowed:
            self._refuse(client, DENIED)
            self._say(
                logging.WARNING,
                "%(peer)s refused: its CID is not allowed",
                {"event": "connection_refused", "upstream": route.endpoint, "reason": "denied"},
            )
            return
        self._sides = (client,)
        presence = self._relay.look(client)
        try:
            upstream, address, said = self._interruption.during(
                route.upstream.connect, client, presence, self._meanwhile
            )
        except ClientGone:
            self._refuse(client, CLIENT_GONE)
            self._say(
                logging.INFO,
                "%(peer)s closed: it had gone before there was a connection to %(upstream)s",
                {
                    "event": "connection_failed",
                    "upstream": route.endpoint,
                    "reason": "client gone",
                },
            )
            return
        except ConnectFailed as failure:
            self._refuse(client, failure.cause, by_endpoint=True)
            self._say(
                logging.ERROR,
                "%(peer)s closed: cannot connect to %(upstream)s: %(failure)s",
                {
                    "event": "connection_failed",
                    "upstream": route.endpoint,
                    "reason": FAILURES[failure.cause],
                    "errno": failure.code,
                    "failure": failure,
                },
            )
            return
        except EndNow:
            self._refuse(client, FAILED)
            self._say(
                logging.WARNING,
                "%(peer)s closed: proxy ends now, and %(upstream)s had not answered",
                {"event": "connection_failed", "upstream": route.endpoint, "reason": End.CUT},
            )
            return
        self._relay_connection(client, upstream, address, said)

    def _refuse(self, client: Socket, cause: int, by_endpoint: bool = False) -> None:
        # A reset where there is one: the client must not take an end for an empty answer.
        reset_on_close(client)
        client.close()
        self._slot[cause] += 1
        if self._tally is not None:
            if by_endpoint:
                self._tally.failed(cause, time.monotonic_ns())
            else:
                self._tally.came_to_nothing(cause)
        # As in _account(): from here on the worker writes the line, and the master does not.
        self._slot[STATE] = IDLE

    def _relay_connection(
        self, client: Socket, upstream: Socket, address: Where, said: bytes
    ) -> None:
        slot = self._slot
        self._sides, self._address = (client, upstream), address
        if isinstance(address, Address):
            slot[ADDRESS_HIGH], slot[ADDRESS_LOW] = address.bits
        slot[SERVED] += 1
        if self._tally is not None:
            now = time.monotonic_ns()
            self._tally.connected(now - slot[SINCE], now)
        slot[STATE] = RELAYING
        outcome = CUT
        try:
            outcome = self._relay.run(client, upstream, self._route.idle_timeout, said)
        except EndNow:
            pass
        self._keepalive.end()
        client.close()
        upstream.close()
        self._lifeline.signal_no_more()
        self._account(outcome)

    def _account(self, outcome: Outcome) -> None:
        slot = self._slot
        # If a worker dies before this, the master writes the line. So it is set before the line: a
        # reader may kill the worker for that line, and it must not come twice.
        slot[STATE] = IDLE
        if self._tally is not None:
            self._tally.ended(time.monotonic_ns() - slot[SINCE])
        if self._logs_ends or outcome is CUT:
            self._say(
                logging.WARNING if outcome is CUT else logging.INFO,
                ENDED,
                {
                    "event": "connection_closed",
                    "upstream": self._address,
                    "reason": outcome.end,
                    "errno": outcome.code,
                    "outcome": outcome,
                },
            )
        slot[UP_BEFORE], slot[DOWN_BEFORE] = slot[TOTAL_UP], slot[TOTAL_DOWN]

    def _say(self, level: int, text: str, known: Dict[str, object]) -> None:
        """Log the one line of this connection, at a bounded rate: a guest can cause it."""
        if not log.isEnabledFor(level):
            return
        now, slot = time.monotonic_ns(), self._slot
        if not self._limiter.allow(now):
            self._untold.count(LEFT_OUT)
            return
        known["service"] = self._route.name
        known["connection"] = connection_name(slot[SERIAL], slot[CONNECTIONS])
        known["peer"] = peer_name(self._peer)
        known["bytes_up"] = slot[TOTAL_UP] - slot[UP_BEFORE]
        known["bytes_down"] = slot[TOTAL_DOWN] - slot[DOWN_BEFORE]
        known["seconds"] = (now - slot[SINCE]) / NANOSECONDS
        text = (NAMED_OF_SEVERAL if self._duty.board.several else NAMED) + text
        # As log.log() does in the end. But log.log() first looks up its caller and examines the
        # values, which costs a worker 60 KiB on CPython 3.11.
        record = logging.LogRecord(log.name, level, "", 0, text, None, None)
        record.args = known
        log.handle(record)
