"""What an enclave may expect of the proxy in its parent, and the parent of the one in the enclave.

Runs inside a virtual machine, the parent, and starts the enclave as a second one in that
(../test_enclave.py has the parent started, ../enclave.py is the enclave). Its name keeps it from
being collected anywhere else.
"""

from __future__ import annotations

import base64
import functools
import os
import socket
import subprocess
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Iterator

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.clients import answers, end_of
from tests.support.kms import KmsServer
from tests.support.program import Proxy
from tests.support.servers import CHUNK, exchange, read_all
from tests.support.timing import SLOWNESS
from tests.support.transports import Tcp, Vsock

from .. import enclave
from ..enclave import Enclave

# What ../guest/vsock-proxy.yaml has: the port of the proxy here, and those of the servers there.
PORT = 8000
PAGE, ECHO, SUM = 5000, 5001, 5002
# How a client in the enclave connects: itself, or by the forwarder there.
EITHER_WAY = pytest.mark.parametrize("way", [f"2 {PORT}", "127.0.0.1 443"], ids=["vsock", "TCP"])
MANY = 50
BULK = 4 * 1024 * 1024
HALF_CLOSED = 300_000
ANSWER_SECONDS = 240
# After its guest has gone. This holds as it is: the emulated machine gets no more time.
IDLE_AGAIN_SECONDS = 5


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    """An enclave that lives through all tests."""
    folder = tmp_path_factory.mktemp("guest")
    with enclave.running(enclave.Image.from_environment(os.environ), 16, folder) as started:
        yield started


@pytest.fixture(scope="module")
def boot_another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Enclave]]:
    """Boots an enclave at the first call; it is absent before, and the last test kills it."""
    image, folder = enclave.Image.from_environment(os.environ), tmp_path_factory.mktemp("another")
    with ExitStack() as stack:
        yield functools.lru_cache(lambda: stack.enter_context(enclave.running(image, 17, folder)))


@pytest.fixture
def transport(tmp_path: Path) -> Vsock:
    """The way to the proxy here, at the port that the enclave knows."""
    made = Vsock(tmp_path)
    made.port = PORT
    return made


@pytest.fixture
def start_to_guest(start_proxy: StartProxy, tmp_path: Path) -> StartProxy:
    """Starts the proxy for clients on TCP, which leads to a port of an enclave."""
    return lambda cid, port: start_proxy((f"vsock:{cid}", port), on=Tcp(tmp_path))


def fetch(proxy: Proxy, path: str) -> str:
    """What curl prints."""
    assert isinstance(proxy.transport, Tcp)
    url = f"http://{proxy.transport.address}:{proxy.transport.port}{path}"
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", str(20 * SLOWNESS), url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def crc_at_the_end(connection: socket.socket) -> None:
    """Reply only once the client has shut down its sending side: with the CRC of what it sent."""
    crc = 0
    while data := connection.recv(CHUNK):
        crc = zlib.crc32(data, crc)
    connection.sendall(str(crc).encode())
    connection.shutdown(socket.SHUT_WR)


# From the enclave


def test_a_few_bytes_are_echoed(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    start_proxy(start_server())
    verdict, sent, received = guest.ask(f"echo 2 {PORT} 64", ANSWER_SECONDS).split()
    assert (verdict, received) == ("ok", sent)


@EITHER_WAY
def test_bulk_both_ways_at_once_arrives_unchanged(
    way: str, guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    start_proxy(start_server())
    verdict, sent, received = guest.ask(f"echo {way} {BULK}", ANSWER_SECONDS).split()
    assert (verdict, received) == ("ok", sent)


@EITHER_WAY
def test_a_guest_that_half_closes_reads_the_whole_reply(
    way: str, guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    start_proxy(start_server(crc_at_the_end))
    verdict, sent, reply = guest.ask(f"half-close {way} {HALF_CLOSED}", ANSWER_SECONDS).split()
    assert (verdict, reply) == ("ok", sent)


def test_connections_are_served_at_once(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    start_proxy(start_server(), workers=MANY)
    assert guest.ask(f"many 2 {PORT} {MANY}", ANSWER_SECONDS) == f"ok {MANY}"


def test_the_log_names_the_guest_by_its_cid(
    guest: Enclave, start_server: StartServer, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(start_server())
    guest.ask(f"echo 2 {PORT} 64", ANSWER_SECONDS)
    assert proxy.log.wait_for(r"\b16:\d+\b")


def test_the_aws_sdk_in_the_enclave_encrypts_and_decrypts_over_tls(
    guest: Enclave, start_proxy: StartProxy, tmp_path: Path
) -> None:
    kms = KmsServer(tmp_path, "kms.us-east-1.amazonaws.com")
    try:
        proxy = start_proxy((kms.host, kms.port))
        certificate = base64.b64encode(kms.certificate.read_bytes()).decode()
        assert guest.ask(f"kms {certificate}", ANSWER_SECONDS) == "ok"
    finally:
        kms.close()
    assert proxy.log.wait_for(" ended: ")


# To the enclave


def test_curl_fetches_a_page_from_the_enclave(guest: Enclave, start_to_guest: StartProxy) -> None:
    assert fetch(start_to_guest(16, PAGE), "/page") == "<h1>/page of the enclave</h1>"


def test_bulk_both_ways_at_once_passes_to_the_enclave_unchanged(
    guest: Enclave, start_to_guest: StartProxy
) -> None:
    data = os.urandom(BULK)
    with start_to_guest(16, ECHO).connect() as client:
        assert exchange(client, data) == data


def test_a_client_of_the_enclave_that_half_closes_reads_the_whole_reply(
    guest: Enclave, start_to_guest: StartProxy
) -> None:
    data = os.urandom(HALF_CLOSED)
    with start_to_guest(16, SUM).connect() as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).decode() == str(zlib.crc32(data))


# An enclave that comes and goes


def test_a_guest_that_comes_after_the_proxy_is_served_from_then_on(
    start_to_guest: StartProxy, boot_another: Callable[[], Enclave]
) -> None:
    proxy = start_to_guest(17, PAGE)
    assert not answers(proxy)
    proxy.log.wait_for("closed: cannot connect to vsock:17:5000: No such device; there is no guest")
    boot_another()
    assert fetch(proxy, "/late") == "<h1>/late of the enclave</h1>"


def test_what_is_under_way_ends_both_ways_when_the_guest_is_killed(
    start_server: StartServer,
    start_proxy: StartProxy,
    start_to_guest: StartProxy,
    boot_another: Callable[[], Enclave],
) -> None:
    from_guest, to_guest = start_proxy(start_server(), workers=2), start_to_guest(17, ECHO)
    doomed = boot_another()
    assert doomed.ask(f"pour 2 {PORT}", ANSWER_SECONDS) == "ok"
    from_guest.wait_for_workers(1, "[17:")
    with to_guest.connect() as client:
        assert exchange(client, b"x") == b"x"
        doomed.kill()
        from_guest.wait_for_workers(2, " idle", timeout=IDLE_AGAIN_SECONDS / SLOWNESS)
        assert end_of(client) == b""
