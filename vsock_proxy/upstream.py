"""Connecting to the endpoint: to the first of its known addresses that answers.

The common case is one connect() and one poll(), on a socket that is non-blocking from its making.
A blocking connect() bounded by SO_SNDTIMEO would be no cheaper, and Python goes on without any
bound once a signal has interrupted it. An attempt goes on when its head start is over, and from
then on addresses race as RFC 8305 says: another one is tried every 250 ms, or at once when the
last one failed, and the first to answer wins.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from select import POLLOUT
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Dict, List, Optional, Tuple

from vsock_proxy import scoreboard
from vsock_proxy.addresses import Address, AddressTable

# RFC 8305, 5: Connection Attempt Delay.
ATTEMPT_DELAY = 0.25

KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
CAUSES = {
    errno.ECONNREFUSED: scoreboard.REFUSED,
    errno.ETIMEDOUT: scoreboard.TIMED_OUT,
    errno.ENETUNREACH: scoreboard.UNREACHABLE,
    errno.EHOSTUNREACH: scoreboard.UNREACHABLE,
}


class ConnectFailed(Exception):
    """No address answered; the text says for each why, cause is the scoreboard's cell for it."""

    def __init__(self, text: str, cause: int) -> None:
        super().__init__(text)
        self.cause = cause


class Upstream:
    """Makes connections to the one endpoint of this run."""

    def __init__(self, table: AddressTable, timeout: float, nudge: int) -> None:
        """
        timeout: seconds after which a connection is given up, all addresses together.
        nudge: a non-blocking descriptor; a byte written there asks for a new lookup.
        """
        self._table = table
        self._timeout = timeout
        self._nudge = nudge

    def connect(self) -> Tuple[socket.SocketType, Address]:
        """A connected, non-blocking TCP socket and where it leads. Raises ConnectFailed."""
        deadline = time.monotonic() + self._timeout
        addresses = self._table.current() or self._first_addresses()
        first = addresses[0]
        try:
            sock = _make_socket(first)
        except OSError as error:
            return self._race(_Race(addresses[1:], None, first, error), deadline)
        code = sock.connect_ex(first.sockaddr)
        if code == errno.EINPROGRESS:
            seconds = deadline - time.monotonic()
            if len(addresses) > 1:
                seconds = min(seconds, ATTEMPT_DELAY)
            # The wait for the first answer of DNS may have taken all, and poll() waits without
            # bound for less than nothing.
            code = _await_answer(sock, max(0.0, seconds))
        if not code:
            return sock, first
        race = _Race(addresses[1:], sock, first, OSError(code, os.strerror(code)))
        return self._race(race, deadline)

    def _first_addresses(self) -> Tuple[Address, ...]:
        """Wait for the resolver's first answer. Raises ConnectFailed."""
        self._table.wait(self._timeout)
        addresses = self._table.current()
        if not addresses:
            raise ConnectFailed("the endpoint's name does not resolve yet", scoreboard.UNRESOLVED)
        return addresses

    def _race(self, race: _Race, deadline: float) -> Tuple[socket.SocketType, Address]:
        try:
            sock, address = race.run(deadline)
        except ConnectFailed:
            self._ask_for_lookup()
            raise
        self._table.prefer(address)
        return sock, address

    def _ask_for_lookup(self) -> None:
        try:
            os.write(self._nudge, b"\0")
        except (BlockingIOError, BrokenPipeError):
            # The resolver has been asked often enough, or there is none.
            pass


class _Race:
    """Attempts at several addresses, of which the first to answer wins."""

    def __init__(
        self,
        others: Tuple[Address, ...],
        sock: Optional[socket.SocketType],
        address: Address,
        error: OSError,
    ) -> None:
        """Go on after a first attempt that failed, or that needs longer (BlockingIOError)."""
        self._waiting = list(others)
        self._failures: List[str] = []
        self._cause: Optional[int] = None
        self._poll = select.poll()
        self._begun: Dict[int, Tuple[socket.SocketType, Address]] = {}
        self._sort(sock, address, error)

    def run(self, deadline: float) -> Tuple[socket.SocketType, Address]:
        """The winner. deadline is of time.monotonic(). Raises ConnectFailed."""
        next_attempt = 0.0
        try:
            while self._waiting or self._begun:
                now = time.monotonic()
                if now >= deadline:
                    break
                if self._waiting and (now >= next_attempt or not self._begun):
                    self._attempt(self._waiting.pop(0))
                    next_attempt = now + ATTEMPT_DELAY
                winner = self._await(min(deadline, next_attempt) if self._waiting else deadline)
                if winner:
                    return winner
            return self._give_up()
        finally:
            for sock, _ in self._begun.values():
                sock.close()

    def _attempt(self, address: Address) -> None:
        sock: Optional[socket.SocketType] = None
        try:
            sock = _make_socket(address)
            sock.connect(address.sockaddr)
        except OSError as error:
            self._sort(sock, address, error)
        else:
            self._add(sock, address)

    def _sort(self, sock: Optional[socket.SocketType], address: Address, error: OSError) -> None:
        """An attempt did not connect at once: it is under way, or it failed."""
        if sock is not None and isinstance(error, BlockingIOError):
            self._add(sock, address)
            return
        if sock is not None:
            sock.close()
        self._note(address, error)

    def _note(self, address: Address, error: OSError) -> None:
        self._failures.append(f"{address}: {error.strerror}")
        self._cause = CAUSES.get(error.errno or 0, scoreboard.FAILED)

    def _add(self, sock: socket.SocketType, address: Address) -> None:
        self._begun[sock.fileno()] = (sock, address)
        self._poll.register(sock, POLLOUT)

    def _await(self, until: float) -> Optional[Tuple[socket.SocketType, Address]]:
        """Wait for an answer to any attempt; None if there is none, or it is a refusal."""
        if not self._begun:
            return None
        for fd, _ in self._poll.poll(max(0, (until - time.monotonic()) * 1000)):
            sock, address = self._begun.pop(fd)
            self._poll.unregister(fd)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return sock, address
            sock.close()
            self._note(address, OSError(code, os.strerror(code)))
        return None

    def _give_up(self) -> Tuple[socket.SocketType, Address]:
        for _, address in self._begun.values():
            self._note(address, OSError(errno.ETIMEDOUT, "no answer in time"))
        for address in self._waiting:
            self._note(address, OSError(errno.ETIMEDOUT, "not tried, time was over"))
        raise ConnectFailed("; ".join(self._failures), self._cause or scoreboard.FAILED)


def _make_socket(address: Address) -> socket.SocketType:
    sock = socket.SocketType(address.family, KIND)
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return sock


def _await_answer(sock: socket.SocketType, seconds: float) -> int:
    """How an attempt under way ends: 0, an errno, or EINPROGRESS if it takes longer than that."""
    poll = select.poll()
    poll.register(sock, POLLOUT)
    for _, event in poll.poll(seconds * 1000):
        if event == POLLOUT:
            return 0
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.EINPROGRESS
