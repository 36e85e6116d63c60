"""What serving costs, where it can be counted exactly."""

from __future__ import annotations

import socket
import sys
from typing import List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.program import Proxy
from tests.support.servers import exchange, read_all
from tests.support.timing import SLOWNESS, wait_until
from vsock_proxy.serving.direction import BUFFER_SIZE

CONNECTIONS = 200
KIB, MIB = 1 << 10, 1 << 20
# Where objects are counted, each use of one may cost a page.
IS_COUNTED = sys.version_info < (3, 12)
FRESH_AT_MOST_KIB = (1.25 if IS_COUNTED else 0.65) * KIB
SERVED_AT_MOST_KIB = (2.2 if IS_COUNTED else 1.15) * KIB


def test_a_connection_wakes_one_idle_worker_and_not_all_of_them(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=50)
    workers = proxy.wait_for_workers(50, "idle")
    before = _wakings(workers)
    for _ in range(CONNECTIONS):
        _one_connection(proxy)
    # The one that serves waits for the client's data, the answer, the end and the next client;
    # were all idle ones woken, it would be fifty more.
    assert _wakings(workers) - before < CONNECTIONS * 8


def _one_connection(proxy: Proxy) -> None:
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


def _wakings(pids: list[int]) -> int:
    return sum(processes.context_switches(pid) for pid in pids)


@pytest.mark.alone
def test_20_000_connections_leave_no_descriptor_and_no_memory_behind(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(_greet)
    proxy = start_proxy(server, "--log-level", "warning", workers=2, ready=False)
    wait_until(lambda: _answers(proxy), "it serves")
    rounds = 10_000 if SLOWNESS == 1 else 500
    _serve(proxy, server.accepted, rounds)
    workers = proxy.wait_for_workers(2)
    # A worker that still ends its last connection has two more.
    idle_files = min(processes.open_files(pid) for pid in workers)
    memory = [processes.pss_kib(pid) for pid in workers]
    _serve(proxy, server.accepted, rounds)
    proxy.wait_for_workers(2, "idle")
    wait_until(
        lambda: all(processes.open_files(pid) == idle_files for pid in workers),
        f"each worker has {idle_files} descriptors again",
    )
    assert all(processes.pss_kib(pid) < before * 1.1 for pid, before in zip(workers, memory)), (
        memory
    )


def _greet(connection: socket.socket) -> None:
    connection.sendall(b"hi")
    connection.close()


def _answers(proxy: Proxy) -> bool:
    try:
        with proxy.connect() as client:
            return read_all(client) == b"hi"
    except (ConnectionRefusedError, FileNotFoundError, ConnectionResetError):
        return False


def _serve(proxy: Proxy, accepted: List[socket.socket], rounds: int) -> None:
    for _ in range(rounds):
        with proxy.connect() as client:
            assert read_all(client) == b"hi"
        # The server remembers each connection; twenty thousand are too many to keep.
        accepted.clear()


def test_a_worker_gives_back_the_memory_of_its_buffers(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    (worker,) = proxy.wait_for_workers(1, "idle")
    # What the interpreter takes when it relays for the first time is not meant.
    _one_connection(proxy)
    proxy.log.wait_for("1 bytes up")
    before = processes.anonymous_kib(worker)
    with proxy.connect() as client:
        assert exchange(client, bytes(2 * MIB)) == bytes(2 * MIB)
    proxy.log.wait_for(f"{2 * MIB} bytes up")
    proxy.wait_for_workers(1, "idle")
    # A pipe is made for the first time, which takes pages too.
    assert processes.anonymous_kib(worker) - before < BUFFER_SIZE // KIB


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_a_worker_takes_little_memory_fresh_and_once_it_has_served(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), "--log-level", "warning", workers=100, ready=False)
    workers = proxy.wait_for_workers(100, "idle", timeout=30)
    assert _average_kib(workers) < FRESH_AT_MOST_KIB
    for _ in range(10):
        # All at once, so that each worker has one.
        clients = [proxy.connect() for _ in workers]
        for client in clients:
            assert exchange(client, b"x") == b"x"
            client.close()
    proxy.wait_for_workers(100, "idle")
    assert _average_kib(workers) < SERVED_AT_MOST_KIB


def _average_kib(pids: List[int]) -> float:
    return sum(map(processes.pss_kib, pids)) / len(pids)
