"""Connecting to the endpoint: to the first of its known addresses that answers.

The common case is one connect() and at most one poll(), on a socket that is non-blocking from the
start. A blocking connect() with SO_SNDTIMEO would be no cheaper, and once a signal has interrupted
it, Python goes on without any limit. If the first attempt fails or takes more than a moment, the
addresses race, and the worker also watches the client and the master.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from select import POLLOUT
from typing import Dict, Optional, Tuple

from vsock_proxy.endpoint.addresses import Address, AddressTable
from vsock_proxy.observing import scoreboard
from vsock_proxy.process.interpreter import Socket
from vsock_proxy.serving.attempt import begin
from vsock_proxy.serving.presence import GONE, Presence
from vsock_proxy.serving.race import ConnectFailed, Race
from vsock_proxy.serving.selfconnect import SelfConnect
from vsock_proxy.serving.transports import reset_on_close
from vsock_proxy.serving.waiting import MOMENT, ClientGone, Meanwhile, Waiting

Connected = Tuple[Socket, Address]


class Upstream:
    """Makes connections to the one endpoint of this run."""

    def __init__(self, table: AddressTable, timeout: float) -> None:
        """timeout: seconds until connecting is given up, for all addresses together."""
        self._table = table
        self._timeout = timeout
        self._itself = SelfConnect(table.port)

    def connect(
        self, client: socket.SocketType, presence: Presence, meanwhile: Meanwhile
    ) -> Tuple[Socket, Address, bytes]:
        """See AnyUpstream; nothing is read from the endpoint here."""
        if presence is GONE:
            raise ClientGone
        began = time.monotonic()
        deadline = began + self._timeout
        addresses = self._table.current()
        if not addresses:
            waiting = Waiting(client, presence, meanwhile, began)
            addresses = self._first_addresses(waiting, deadline)
            return (*self._race(_Attempts(Race(addresses, deadline), waiting, self._itself)), b"")
        first = addresses[0]
        sock, code = begin(first.family, first.sockaddr)
        if sock and code == errno.EINPROGRESS:
            code = _await_answer(sock, min(MOMENT, self._timeout))
        if sock and not code and not self._itself.has_made(sock, first):
            return sock, first, b""
        waiting = Waiting(client, presence, meanwhile, began)
        attempts = _Attempts(Race(addresses, deadline), waiting, self._itself)
        attempts.adopt(sock, code, began)
        return (*self._race(attempts), b"")

    def _first_addresses(self, waiting: Waiting, deadline: float) -> Tuple[Address, ...]:
        """Wait for the resolver's first answer. Raises ConnectFailed or ClientGone."""
        published = self._table.published
        waiting.poll.register(published, select.POLLIN)
        while not waiting.wait(deadline) and time.monotonic() < deadline:
            pass
        waiting.poll.unregister(published)
        addresses = self._table.current()
        if not addresses:
            raise ConnectFailed("the endpoint's name does not resolve yet", scoreboard.UNRESOLVED)
        return addresses

    def _race(self, attempts: _Attempts) -> Connected:
        try:
            sock, address = attempts.run()
        except ConnectFailed:
            self._table.nudge()
            raise
        self._table.prefer(address)
        return sock, address


class _Attempts:
    """The sockets of a race."""

    def __init__(self, race: Race, waiting: Waiting, itself: SelfConnect) -> None:
        self._race = race
        self._waiting = waiting
        self._itself = itself
        # By descriptor: the attempts under way, each with the place of its address.
        self._begun: Dict[int, Tuple[socket.SocketType, int]] = {}

    def adopt(self, sock: Optional[socket.SocketType], code: int, began: float) -> None:
        """Take over the attempt at the first address; it began then and has not succeeded yet."""
        place = self._race.next(began)
        assert place == 0
        self._sort(sock, code, place)

    def run(self) -> Connected:
        """The winner. Raises ConnectFailed or ClientGone."""
        race, waiting = self._race, self._waiting
        try:
            while not race.all_failed:
                now = time.monotonic()
                over = race.is_over(now)
                place = None if over else race.next(now)
                if place is not None:
                    address = race.addresses[place]
                    sock, code = begin(address.family, address.sockaddr)
                    winner = self._sort(sock, code, place)
                    if winner:
                        return winner
                    continue
                events = waiting.wait(race.until)
                for fd, _ in events:
                    winner = self._answered(fd)
                    if winner:
                        return winner
                # A late answer still counts.
                if not events and over:
                    break
            raise race.failure()
        finally:
            for sock, _ in self._begun.values():
                sock.close()

    def _answered(self, fd: int) -> Optional[Connected]:
        self._waiting.poll.unregister(fd)
        sock, place = self._begun.pop(fd)
        return self._sort(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), place)

    def _sort(
        self, sock: Optional[socket.SocketType], code: int, place: int
    ) -> Optional[Connected]:
        """An attempt has succeeded (0), is under way (EINPROGRESS) or has failed."""
        address = self._race.addresses[place]
        if sock and code == errno.EINPROGRESS:
            self._begun[sock.fileno()] = (sock, place)
            self._waiting.poll.register(sock, POLLOUT)
            return None
        if sock and not code:
            if not self._itself.has_made(sock, address):
                return sock, address
            # After a clean end the server could not listen on that port for a minute.
            reset_on_close(sock)
            code = errno.ECONNREFUSED
        if sock:
            sock.close()
        self._race.fail(place, code)
        return None


def _await_answer(sock: socket.SocketType, seconds: float) -> int:
    """How an attempt under way ends: 0, an errno, or EINPROGRESS if it takes longer."""
    poll = select.poll()
    poll.register(sock, POLLOUT)
    for _, event in poll.poll(seconds * 1000):
        if event == POLLOUT:
            return 0
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.EINPROGRESS
