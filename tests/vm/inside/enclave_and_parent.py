"""What an enclave may expect of the proxy in its parent.

Runs inside a virtual machine, the parent, and starts the enclave as a second one in that
(../test_enclave.py has the parent started, ../enclave.py is the enclave). Its name keeps it from
being collected anywhere else.
"""

from __future__ import annotations

import os
import socket
import zlib
from pathlib import Path
from typing import Iterator

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.servers import CHUNK
from tests.support.timing import SLOWNESS

from .. import enclave
from ..enclave import Enclave

MANY = 50
BULK = 4 * 1024 * 1024
HALF_CLOSED = 300_000
ANSWER_SECONDS = 120
# After its guest has gone. This holds as it is: the emulated machine gets no more time.
IDLE_AGAIN_SECONDS = 5


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    """An enclave that lives through all tests; a test that needs to end one starts its own."""
    folder = tmp_path_factory.mktemp("guest")
    with enclave.running(enclave.Image.from_environment(os.environ), 16, folder) as started:
        yield started


def crc_at_the_end(connection: socket.socket) -> None:
    """Reply only once the client has shut down its sending side: with the CRC of what it sent."""
    crc = 0
    while data := connection.recv(CHUNK):
        crc = zlib.crc32(data, crc)
    connection.sendall(str(crc).encode())
    connection.shutdown(socket.SHUT_WR)


def test_a_few_bytes_are_echoed(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(start_server())
    verdict, sent, received = guest.ask(f"echo {proxy.transport.port} 64", ANSWER_SECONDS).split()
    assert (verdict, received) == ("ok", sent)


def test_bulk_both_ways_at_once_arrives_unchanged(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(start_server())
    answer = guest.ask(f"echo {proxy.transport.port} {BULK}", ANSWER_SECONDS)
    verdict, sent, received = answer.split()
    assert (verdict, received) == ("ok", sent)


def test_a_guest_that_half_closes_reads_the_whole_reply(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(start_server(crc_at_the_end))
    answer = guest.ask(f"half-close {proxy.transport.port} {HALF_CLOSED}", ANSWER_SECONDS)
    verdict, sent, reply = answer.split()
    assert (verdict, reply) == ("ok", sent)


def test_connections_are_served_at_once(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(start_server(), workers=MANY)
    assert guest.ask(f"many {proxy.transport.port} {MANY}", ANSWER_SECONDS) == f"ok {MANY}"


def test_the_log_names_the_guest_by_its_cid(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(start_server())
    guest.ask(f"echo {proxy.transport.port} 64", ANSWER_SECONDS)
    assert proxy.log.wait_for(r"\b16:\d+\b")


def test_workers_are_idle_again_after_the_guest_is_killed_in_mid_transfer(
    start_server: StartServer, start_proxy: StartProxy, tmp_path: Path
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    image = enclave.Image.from_environment(os.environ)
    with enclave.running(image, 17, tmp_path) as doomed:
        assert doomed.ask(f"pour {proxy.transport.port}", ANSWER_SECONDS) == "ok"
        proxy.wait_for_workers(1, "[17:")
        doomed.kill()
        proxy.wait_for_workers(2, " idle", timeout=IDLE_AGAIN_SECONDS / SLOWNESS)
