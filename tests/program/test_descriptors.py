"""Limits of open files: what runs out of descriptors goes on once it has some."""

from __future__ import annotations

import os
import resource
import signal
import socket
from typing import Callable, Iterator

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import answers, end_of
from tests.support.pattern import is_whole, send_pattern
from tests.support.servers import exchange
from tests.support.timing import SLOWNESS, let_pass, wait_until

TRACEBACK = "Traceback"


@pytest.fixture
def limit_files() -> Iterator[Callable[[int, int], None]]:
    """Sets the soft limit of open files of a live process."""
    needed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def limit(pid: int, count: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, needed))

    yield limit


def highest_file(pid: int) -> int:
    return max(processes.descriptors(pid))


@pytest.mark.parametrize("spare", [0, 1], ids=["accept fails", "the endpoint's socket fails"])
def test_a_worker_without_free_descriptors_says_so_and_recovers(
    spare: int,
    start_proxy: StartProxy,
    start_server: StartServer,
    limit_files: Callable[[int, int], None],
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    pids = sorted(proxy.wait_for_workers(2, "idle"))
    assert answers(proxy)
    board.wait_until_idle(proxy, 2)
    for pid in pids:
        limit_files(pid, first_free(pid) + spare)
    with proxy.connect() as client:
        proxy.log.wait_for("Too many open files")
        for pid in (*pids, proxy.pid):
            limit_files(pid, 64)
        if spare == 0:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        else:
            assert end_of(client) == b""
    assert answers(proxy)
    assert sorted(proxy.workers()) == pids
    assert not proxy.log.matching(TRACEBACK)


def first_free(pid: int) -> int:
    """The descriptor that the next open() of a process would get."""
    used = processes.descriptors(pid)
    return next(number for number in range(len(used) + 1) if number not in used)


@pytest.mark.alone
def test_a_lack_of_descriptors_costs_no_connection_and_no_cpu_time(
    start_proxy: StartProxy,
    start_server: StartServer,
    limit_files: Callable[[int, int], None],
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    proxy.wait_for_workers(2, "idle")
    with proxy.connect() as live:
        exchange(live, b"x")
        (busy,) = proxy.wait_for_workers(1, " -> ")
        for pid in proxy.workers():
            limit_files(pid, first_free(pid))
        (idle,) = set(proxy.workers()) - {busy}
        with proxy.connect() as queued:
            queued.sendall(b"y")
            proxy.log.wait_for("cannot accept: Too many open files; going on")
            ticks = processes.processor_ticks(idle)
            let_pass(1, why="a worker that tries without a pause would use all of it")
            assert processes.processor_ticks(idle) - ticks < 10 * SLOWNESS
            assert len(proxy.log.matching("cannot accept")) < 20
            assert exchange(live, b"z") == b"z"
            limit_files(idle, 64)
            assert queued.recv(1) == b"y"


def test_a_transfer_that_grows_without_free_descriptors_arrives_whole(
    start_proxy: StartProxy,
    start_server: StartServer,
    limit_files: Callable[[int, int], None],
) -> None:
    def wait_then_send(connection: socket.socket) -> None:
        connection.sendall(connection.recv(1))
        connection.recv(1)
        send_pattern(connection)

    proxy = start_proxy(start_server(wait_then_send), workers=1)
    with proxy.connect() as client:
        exchange(client, b"x")
        (worker,) = proxy.wait_for_workers(1, " -> ")
        limit_files(worker, first_free(worker))
        client.sendall(b"y")
        assert is_whole(client)
    board.wait_until_idle(proxy, 1)
    assert proxy.workers() == [worker]


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_master_out_of_descriptors_replaces_workers_once_it_can(
    start_proxy: StartProxy,
    start_server: StartServer,
    limit_files: Callable[[int, int], None],
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    old = proxy.wait_for_workers(2, "idle")
    limit_files(proxy.pid, 3)
    os.kill(old[0], signal.SIGKILL)
    proxy.log.wait_for("worker [12] ended, signal 9")
    assert answers(proxy)
    limit_files(proxy.pid, 64)
    wait_until(lambda: len(set(proxy.workers("idle")) - {old[0]}) == 2, "another worker")
    assert not proxy.has_ended()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_soft_limit_that_is_tiny_at_the_start_is_raised(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), wrapper=["prlimit", "--nofile=8:"])
    assert all(answers(proxy) for _ in range(8))
    assert resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[0] >= 32


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("hard", [6, 12, 20, 40])
def test_a_tiny_hard_limit_at_the_start_causes_no_traceback(
    hard: int, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(
        start_server(), ready=False, workers=1, wrapper=["prlimit", f"--nofile={hard}:{hard}"]
    )
    wait_until(
        lambda: proxy.has_ended() or proxy.log.matching(r"1 worker$"), "an end or a beginning"
    )
    if proxy.has_ended():
        assert proxy.wait() in (os.EX_UNAVAILABLE, os.EX_TEMPFAIL, os.EX_OSERR, os.EX_CONFIG)
    else:
        answers(proxy)
    assert not proxy.log.matching(TRACEBACK)
