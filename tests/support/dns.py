"""A name server that answers as a test wants: with addresses, without any, or not at all.

It implements only the part of RFC 1035 that a stub resolver needs: UDP, one question, A and AAAA.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
import struct
import threading
from typing import Callable, Counter, Dict, List, Optional, Set, Tuple

from tests.support.timing import wait_until

HEADER = struct.Struct("!6H")
ANSWER_HEADER = struct.Struct("!HHHIH")
A, AAAA, IN = 1, 28, 1
RESPONSE, RECURSION_AVAILABLE = 0x8000, 0x0080
NAME_OF_THE_QUESTION = 0xC000 | HEADER.size
TTL = 0


class Mood(enum.IntEnum):
    """How a question is answered. The values are response codes, except SILENT."""

    ANSWERING = 0
    SERVFAIL = 2
    NXDOMAIN = 3
    SILENT = 255


class NameServer:
    """Answers on 127.0.0.1:53 of the network that it is made in, until closed."""

    def __init__(self) -> None:
        self.mood = Mood.ANSWERING
        self.questions = 0
        # Names for which it gives no answer, and how often it was asked for each name.
        self.unanswered: Set[str] = set()
        self.asked: Counter[str] = Counter()
        # Changes an answer before it is sent.
        self.garble: Optional[Callable[[bytes], bytes]] = None
        self._names: Dict[str, Tuple[str, ...]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def set(self, name: str, *addresses: str) -> None:
        """Set the addresses of a name, in this order."""
        self._names[name] = addresses

    def wait_for_questions(self, count: int) -> None:
        """Wait until this number of questions more have come."""
        wanted = self.questions + count
        wait_until(lambda: self.questions >= wanted, f"{count} questions")

    def wait_for_name(self, name: str) -> None:
        """Wait until it is asked for once more."""
        wanted = self.asked[name] + 1
        wait_until(lambda: self.asked[name] >= wanted, f"a question for {name}", 40)

    def close(self) -> None:
        """Stop; from then on the port is closed. A second time does nothing."""
        if self._socket.fileno() < 0:
            return
        # An empty datagram ends the thread.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            question, client = self._socket.recvfrom(4096)
            if not question:
                return
            self.questions += 1
            name = _asked(question)[0]
            self.asked[name] += 1
            if self.mood is not Mood.SILENT and name not in self.unanswered:
                answer = self._answer(question)
                garble = self.garble
                self._socket.sendto(garble(answer) if garble else answer, client)

    def _answer(self, question: bytes) -> bytes:
        number, flags, *_ = HEADER.unpack_from(question)
        name, kind, end = _asked(question)
        records: List[bytes] = []
        code = self.mood
        if code is Mood.ANSWERING:
            known = self._names.get(name)
            code = Mood.NXDOMAIN if known is None else code
            records = _records(known or (), kind)
        flags |= RESPONSE | RECURSION_AVAILABLE | code
        header = HEADER.pack(number, flags, 1, len(records), 0, 0)
        return header + question[HEADER.size : end] + b"".join(records)


def _asked(question: bytes) -> Tuple[str, int, int]:
    """The name and the kind of the first question, and where that ends."""
    labels: List[str] = []
    place = HEADER.size
    while question[place]:
        size = question[place]
        labels.append(question[place + 1 : place + 1 + size].decode("ascii"))
        place += 1 + size
    (kind,) = struct.unpack_from("!H", question, place + 1)
    return ".".join(labels).lower(), kind, place + 1 + 4


def _records(addresses: Tuple[str, ...], kind: int) -> List[bytes]:
    records = []
    for address in map(ipaddress.ip_address, addresses):
        if kind == (A if address.version == 4 else AAAA):
            data = address.packed
            head = ANSWER_HEADER.pack(NAME_OF_THE_QUESTION, kind, IN, TTL, len(data))
            records.append(head + data)
    return records
