"""Clients of every manner, each in a thread of its own, for as long as the soak lasts."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from typing import Callable, List, Optional

from tests.soak.endpoint import ANSWER, HEADER, UNKNOWN, URGENT, Wish
from tests.soak.tally import Tally
from tests.soak.world import WORKERS, World
from tests.support.servers import CHUNK
from tests.support.timing import let_pass

CLIENTS = 12
SMALL = bytes(byte & 0x7F for byte in range(256))
# More than all buffers on the way hold, so that who reads slowly makes the others wait.
MUCH = 8 << 20
SLOW_BYTES, SLOW_PAUSE, SLOW_SECONDS = 8192, 0.1, 6.0


class Traffic:
    """All clients; start() and stop() them."""

    def __init__(self, world: World, tally: Tally, chance: random.Random) -> None:
        self._world = world
        self._tally = tally
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._be_client, args=(chance.random(),))
            for _ in range(CLIENTS)
        ]

    def start(self) -> None:
        """Let them come."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each end what it does."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def warm_up(self) -> None:
        """Let every worker touch what it will ever touch."""
        clients = [self._world.connect() for _ in range(WORKERS)]
        for client in clients:
            exchange_all(client, letters(random.Random(1), 1 << 20), Wish.PLAIN)
        for client in clients:
            client.close()
        self._world.wait_until_idle()

    def _be_client(self, seed: float) -> None:
        chance = random.Random(seed)
        manners: List[Callable[[random.Random], None]] = [
            *[self._transfer] * 6,
            *[self._vanish] * 3,
            *[self._flood] * 3,
            *[self._stall] * 2,
            self._be_bound,
            self._be_urged,
            self._read_slowly,
            self._write_to_slow_reader,
        ]
        while not self._stopping.is_set():
            try:
                chance.choice(manners)(chance)
            except (BlockingIOError, ConnectionRefusedError) as error:
                # The backlog is full for a moment.
                self._tally.add(type(error).__name__)
            except Exception as error:
                self._tally.unexplained(f"a client met {error!r}")

    # Manners

    def _transfer(self, chance: random.Random) -> None:
        """Send any amount, have it answered, and end with a half-close."""
        size = chance.choice((1, 1000, CHUNK, chance.randrange(1 << 21)))
        self._exchange("whole", letters(chance, size))

    def _stall(self, chance: random.Random) -> None:
        """Send and read nothing for a while, then all."""
        self._exchange("stalled", letters(chance, 1 << 20), pause=chance.random())

    def _be_bound(self, chance: random.Random) -> None:
        """Have a name: a path, an abstract one, or one of the kernel's choice."""
        unique = os.urandom(4).hex()
        path = f"{self._world.folder}/{unique}"
        try:
            name = chance.choice((path, f"\0{unique}", ""))
            self._exchange("bound", letters(chance, 1000), name=name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _be_urged(self, chance: random.Random) -> None:
        """Have urgent data come in the middle of the answer."""
        self._exchange("urged", letters(chance, chance.randrange(1 << 20)), Wish.URGENT)

    def _read_slowly(self, chance: random.Random) -> None:
        """Read little and seldom for longer than the idle timeout."""
        self._exchange("read slowly", letters(chance, MUCH), slowly=True)

    def _write_to_slow_reader(self, chance: random.Random) -> None:
        """The same for the other direction."""
        self._exchange("slowly read", letters(chance, MUCH), Wish.SLOW)

    def _vanish(self, chance: random.Random) -> None:
        """Go away in the middle."""
        with self._world.connect() as client, contextlib.suppress(OSError):
            client.sendall(HEADER.pack(Wish.PLAIN, UNKNOWN))
            client.sendall(letters(chance, chance.randrange(1 << 18)))
            if chance.random() < 0.5:
                client.shutdown(socket.SHUT_WR)
        self._tally.add("vanished")

    def _flood(self, chance: random.Random) -> None:
        """Come and go many times."""
        for _ in range(chance.randrange(100)):
            self._world.connect().close()
            self._tally.add("flood")

    def _exchange(
        self,
        what: str,
        data: bytes,
        wish: Wish = Wish.PLAIN,
        *,
        pause: float = 0.0,
        slowly: bool = False,
        name: Optional[str] = None,
    ) -> None:
        began = time.monotonic()
        with self._world.connect(name) as client:
            received = exchange_all(client, data, wish, pause=pause, slowly=slowly)
        expected = data.translate(ANSWER)
        if received == expected:
            self._tally.add(what)
        elif expected.startswith(received):
            self._tally.cut(began)
        else:
            self._tally.unexplained(f"{len(received)} of {len(data)} bytes, wrong ones ({what})")


def letters(chance: random.Random, size: int) -> bytes:
    """Random bytes of this size, none of which can be taken for the urgent one."""
    return chance.randbytes(size).translate(SMALL)


def exchange_all(
    client: socket.socket, data: bytes, wish: Wish, *, pause: float = 0.0, slowly: bool = False
) -> bytes:
    """Send all and half-close, and meanwhile read up to the end; what came, however it ended."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sendall(HEADER.pack(wish, len(data)) + data)
            client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = bytearray()
    slow_until = time.monotonic() + (SLOW_SECONDS if slowly else 0)
    try:
        let_pass(pause, why="the client does not read for a while")
        while True:
            slow = time.monotonic() < slow_until
            part = client.recv(SLOW_BYTES if slow else CHUNK)
            if not part:
                break
            received += part
            if slow:
                let_pass(SLOW_PAUSE, why="the client reads slowly")
    except (ConnectionResetError, BrokenPipeError):
        pass
    with contextlib.suppress(OSError):
        # Where the connection was cut, the sender may still wait for room.
        client.shutdown(socket.SHUT_RDWR)
    sender.join()
    return bytes(received).replace(URGENT, b"")
