"""Whatever the sizes, splits and pauses: a relay passes on every byte once, in order."""

from __future__ import annotations

import socket
import struct
import threading
from typing import List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.relaying import EACH_PAIR, Kinds, Relayed, on
from tests.support.timing import SLOWNESS, at_full_length, let_pass
from vsock_proxy.serving.direction import BULK_READ
from vsock_proxy.serving.relay import Relay

EXAMPLES = int(at_full_length(40, 12 if SLOWNESS < 5 else 8))


Piece = st.tuples(st.integers(1, 300_000), st.sampled_from((0.0, 0.0, 0.0, 0.001, 0.02)))
Script = st.lists(Piece, max_size=12)
Appetite = st.tuples(st.integers(1, 200_000), st.sampled_from((0.0, 0.0, 0.0005, 0.005)))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    up=Script,
    down=Script,
    client_reads=Appetite,
    endpoint_reads=Appetite,
    seed=st.binary(min_size=16, max_size=16),
)
@pytest.mark.parametrize("bulk_read", [1, BULK_READ], ids=["spliced where it can be", "as it is"])
@pytest.mark.parametrize("kinds", [on(kinds) for kinds in EACH_PAIR])
def test_every_byte_arrives_once_in_order_for_any_sizes_splits_and_pauses(
    kinds: Kinds,
    bulk_read: int,
    up: List[tuple[int, float]],
    down: List[tuple[int, float]],
    client_reads: tuple[int, float],
    endpoint_reads: tuple[int, float],
    seed: bytes,
) -> None:
    relayed = Relayed(Relay(bulk_read=bulk_read), kinds)
    try:
        up_data, down_data = _content(up, seed), _content(down, seed[::-1])
        writers = [
            threading.Thread(target=_write, args=(relayed.client, up, up_data)),
            threading.Thread(target=_write, args=(relayed.endpoint, down, down_data)),
        ]
        received: List[bytes] = []
        reader = threading.Thread(
            target=lambda: received.append(_read(relayed.endpoint, *endpoint_reads))
        )
        for thread in (*writers, reader):
            thread.start()
        assert _read(relayed.client, *client_reads) == down_data
        for thread in (*writers, reader):
            thread.join(30 * SLOWNESS)
        assert received == [up_data]
        assert relayed.outcome().clean
    finally:
        relayed.close()


def _content(script: List[tuple[int, float]], seed: bytes) -> bytes:
    """Bytes that repeat only after 65,537 times 16, so that a shift or a gap shows."""
    size = sum(length for length, _ in script)
    blocks = (size // 16) + 1
    return b"".join(seed[:12] + struct.pack(">I", number) for number in range(blocks))[:size]


def _write(sock: socket.socket, script: List[tuple[int, float]], data: bytes) -> None:
    at = 0
    for length, pause in script:
        sock.sendall(data[at : at + length])
        at += length
        if pause:
            let_pass(pause, why="the side sends in pieces")
    sock.shutdown(socket.SHUT_WR)


def _read(sock: socket.socket, size: int, pause: float) -> bytes:
    parts: List[bytes] = []
    while True:
        part = sock.recv(size)
        if not part:
            return b"".join(parts)
        parts.append(part)
        if pause and len(parts) < 100:
            let_pass(pause, why="the side reads slowly")
