"""Clients that come to several ports at a steady rate, and what became of each.

Each client sends a number of its own and expects it back. The endpoint remembers the numbers that
it has read. So a test can tell a client that nobody accepted from one whose connection was lost.
"""

from __future__ import annotations

import enum
import itertools
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Callable, List, Sequence, Set

from tests.support.servers import Handler, read_exactly

NUMBER = struct.Struct("!Q")
THREADS_A_PORT = 5
LETTERS = 1


class End(enum.Enum):
    """How it went for a client."""

    ANSWERED = "answered"
    REFUSED = "refused"
    CUT = "cut off before the answer"
    WRONG = "answered wrongly"


@dataclass(frozen=True)
class Client:
    """A client that has ended. letter: of the endpoint that answered it."""

    number: int
    port: int
    began: float
    ended: float
    end: End
    letter: bytes = b""


class Crowd:
    """Clients that come while the context lasts, at a rate for each port."""

    def __init__(
        self, connect: Callable[[int], socket.socket], ports: Sequence[int], rate: float
    ) -> None:
        self.been: List[Client] = []
        self._connect = connect
        self._numbers = itertools.count(1)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._come, args=(port, place, THREADS_A_PORT / rate))
            for port in ports
            for place in range(THREADS_A_PORT)
        ]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def of(self, port: int) -> List[Client]:
        """Those of one port."""
        return [client for client in self.been if client.port == port]

    def _come(self, port: int, place: int, interval: float) -> None:
        due = time.monotonic() + interval * place / THREADS_A_PORT
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due += interval
            self.been.append(self._one(port, next(self._numbers)))

    def _one(self, port: int, number: int) -> Client:
        began = time.monotonic()

        def ended(end: End, letter: bytes = b"") -> Client:
            return Client(number, port, began, time.monotonic(), end, letter)

        try:
            client = self._connect(port)
        except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
            return ended(End.REFUSED)
        with client:
            try:
                client.sendall(NUMBER.pack(number))
                answer = read_exactly(client, LETTERS + NUMBER.size)
            except (ConnectionResetError, BrokenPipeError, AssertionError):
                return ended(End.CUT)
        right = answer[LETTERS:] == NUMBER.pack(number)
        return ended(End.ANSWERED if right else End.WRONG, answer[:LETTERS])


def answering(letter: bytes, heard: Set[int]) -> Handler:
    """An endpoint for such clients. It notes the numbers that it has read."""

    def answer(connection: socket.socket) -> None:
        with connection:
            number = read_exactly(connection, NUMBER.size)
            heard.add(NUMBER.unpack(number)[0])
            connection.sendall(letter + number)
            # The client ends first, so that its port is free at once.
            connection.recv(1)

    return answer
