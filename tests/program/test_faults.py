"""Faults of processes, limits, clients and the endpoint: what must go on all the same."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, List, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import answers, end_of
from tests.support.pattern import BLOCK, BLOCKS, MIB, TRANSFER, is_whole, send_pattern
from tests.support.program import ID, Proxy
from tests.support.servers import CHUNK, echo, exchange, read_all, read_exactly, silent
from tests.support.timing import AT_ONCE, SLOWNESS, at_full_length, is_within, wait_until

FLOOD = int(20_000 / SLOWNESS)
TRACEBACK = "Traceback"


# Workers that die or stand still


@pytest.mark.alone
def test_a_worker_killed_in_mid_transfer_costs_only_its_connection(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_pattern))
    others = [proxy.connect() for _ in range(2)]
    firsts = [read_exactly(client, 1000) for client in others]
    busy = proxy.wait_for_workers(2, " -> ")
    victim = proxy.connect()
    received = len(read_exactly(victim, 1000))
    (worker,) = set(proxy.wait_for_workers(3, " -> ")) - set(busy)
    os.kill(worker, signal.SIGKILL)
    try:
        received += len(read_all(victim))
    except ConnectionResetError:
        pass
    assert received < TRANSFER
    for first, client in zip(firsts, others):
        assert is_whole(client, first)
    for client in (victim, *others):
        client.close()
    board.wait_until_idle(proxy, 4)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_a_worker_that_is_killed_is_replaced_within_250_ms(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)

    def replace() -> float:
        (old,) = proxy.wait_for_workers(1, "idle")
        began = time.monotonic()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: set(proxy.workers("idle")) - {old}, "another worker")
        return time.monotonic() - began

    assert is_within(0.25, replace)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_endpoint_sees_that_an_upload_is_cut_off_when_the_worker_dies(
    number: signal.Signals, start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=1)
    (worker,) = proxy.wait_for_workers(1, "idle")
    with proxy.connect() as client:
        client.sendall(bytes(100_000))
        endpoint = server.wait_for_connections(1)[0]
        # At once: the connection has not lasted a moment.
        read_exactly(endpoint, 100_000)
        os.kill(worker, number)
        with pytest.raises(ConnectionResetError):
            endpoint.recv(1)
        # Neither vsock nor a Unix socket has a reset.
        assert end_of(client) == b""


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_workers_that_die_at_once_are_replaced_at_most_10_times_a_second(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    seen = set(proxy.wait_for_workers(4))
    began = time.monotonic()
    while time.monotonic() - began < 2:
        for pid in proxy.workers():
            seen.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    forks = len(seen) - 4
    # Ten may be in the first moment, and ten in each second from there on.
    assert 10 < forks <= 10 + 10 * (time.monotonic() - began)
    proxy.log.wait_for(r"starting another in \d\.\d s, too many have ended")
    board.wait_until_idle(proxy, 4)
    assert answers(proxy)


def test_while_one_worker_stands_still_the_others_go_on_accepting(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    for stopped in proxy.wait_for_workers(4, "idle")[:3]:
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda pid=stopped: processes.state(pid) == "T", "it is stopped")  # type: ignore[misc]
        answer_promptly(proxy, at_full_length(10))
        os.kill(stopped, signal.SIGCONT)
    board.wait_until_idle(proxy, 4)


def answer_promptly(proxy: Proxy, seconds: float) -> None:
    """Be an undisturbed client for so long, a hundred times a second."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert answers(proxy)
        assert time.monotonic() - began < AT_ONCE * SLOWNESS
        threading.Event().wait(0.01)


def test_a_worker_that_stood_still_in_mid_transfer_ends_it_whole(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_pattern))
    with proxy.connect() as client:
        first = read_exactly(client, 1000)
        (worker,) = proxy.wait_for_workers(1, " -> ")
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: processes.state(worker) == "T", "it is stopped")
        with proxy.connect() as other:
            assert read_exactly(other, 1000)
        os.kill(worker, signal.SIGCONT)
        assert is_whole(client, first)


# Clients and endpoints that vanish or stall


def test_a_client_that_leaves_a_silent_endpoint_frees_its_worker_at_once(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=1)

    def vanish() -> float:
        client = proxy.connect()
        client.sendall(b"a request that nobody answers")
        return seconds_until_freed(proxy, client)

    assert is_within(0.3, vanish)
    assert len(read_all_or_reset(server.wait_for_connections(1)[0])) <= 29


def seconds_until_freed(proxy: Proxy, client: socket.socket) -> float:
    """How long after the client has vanished its worker is idle."""
    proxy.wait_for_workers(1, " -> ")
    client.close()
    began = time.monotonic()
    proxy.wait_for_workers(1, "idle")
    return time.monotonic() - began


def read_all_or_reset(connection: socket.socket) -> bytes:
    """What came before the end, or nothing if that was a reset."""
    try:
        return read_all(connection)
    except ConnectionResetError:
        return b""


def test_a_client_that_half_closes_and_then_vanishes_frees_its_worker(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(silent), workers=1)

    def vanish() -> float:
        client = proxy.connect()
        client.shutdown(socket.SHUT_WR)
        return seconds_until_freed(proxy, client)

    assert is_within(0.3 if proxy.transport.name == "hybrid" else 1.5, vanish)


def test_a_client_that_vanishes_while_much_is_under_way_frees_its_worker(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_forever), workers=1)

    def vanish() -> float:
        client = proxy.connect()
        read_exactly(client, MIB)
        return seconds_until_freed(proxy, client)

    assert is_within(0.3, vanish)


def send_forever(connection: socket.socket) -> None:
    while True:
        connection.sendall(BLOCK)


@pytest.mark.alone
def test_a_client_that_reads_nothing_costs_little_and_disturbs_nobody(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(answer_or_flood), workers=2)
    with proxy.connect() as stalled:
        stalled.sendall(b"f")
        (busy,) = proxy.wait_for_workers(1, " -> ")
        wait_until(lambda: has_come_to_rest(proxy, busy), "no more fits anywhere")
        answer_promptly(proxy, at_full_length(60))
        assert processes.pss_kib(busy) < 16 * 1024
        assert has_come_to_rest(proxy, busy)
        read_exactly(stalled, 8 * MIB)
    board.wait_until_idle(proxy, 2)


def has_come_to_rest(proxy: Proxy, pid: int) -> bool:
    """Whether a worker moves nothing and does not spin about it."""
    before = processes.processor_ticks(pid), [row.down for row in board.ask(proxy)]
    threading.Event().wait(0.2)
    return before == (processes.processor_ticks(pid), [row.down for row in board.ask(proxy)])


def answer_or_flood(connection: socket.socket) -> None:
    """An endpoint that sends without end to whoever says f, and echoes to others."""
    if connection.recv(1, socket.MSG_PEEK) == b"f":
        send_forever(connection)
    echo(connection)


@pytest.mark.alone
def test_an_endpoint_that_reads_nothing_costs_bounded_memory(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(silent), workers=1)
    with proxy.connect() as client:
        (busy,) = proxy.wait_for_workers(1, " -> ")
        client.setblocking(False)
        sent = 0
        while select.select([], [client], [], 0.5 * SLOWNESS)[1]:
            sent += client.send(BLOCK)
        assert sent > 0
        assert processes.pss_kib(busy) < 16 * 1024
        assert has_come_to_rest(proxy, busy)


def test_an_endpoint_that_dies_ends_its_client_and_is_used_once_back(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(send_forever)
    proxy = start_proxy(server)
    with proxy.connect() as client:
        read_exactly(client, MIB)
        server.close()
        wait_until(lambda: client.recv(CHUNK, socket.MSG_DONTWAIT) == b"", "the end")
    for _ in range(8):
        assert not answers(proxy)
    proxy.log.wait_for("Connection refused", count=8)
    start_server(port=server.port)
    assert all(answers(proxy) for _ in range(8))


# Many clients


@pytest.mark.parametrize("workers", [1, 4])
def test_200_clients_that_queue_behind_idle_ones_are_all_served_in_turn(
    workers: int, start_proxy: StartProxy, start_server: StartServer
) -> None:
    order: List[bytes] = []

    def note(connection: socket.socket) -> None:
        message = connection.recv(CHUNK)
        if message:
            order.append(message)
            connection.sendall(message)

    server = start_server(note)
    proxy = start_proxy(server, workers=workers)
    holders = [proxy.connect() for _ in range(workers)]
    server.wait_for_connections(workers)
    queued = [proxy.connect() for _ in range(200)]
    messages = [b"%03d" % number for number in range(200)]
    for message, client in zip(messages, queued):
        client.sendall(message)
    assert not select.select(queued, [], [], 0.1)[0]
    for holder in holders:
        holder.close()
    for message, client in zip(messages, queued):
        assert read_exactly(client, 3) == message
        client.close()
    assert sorted(order) == messages
    if workers == 1:
        assert order == messages
    board.wait_until_idle(proxy, workers)


@pytest.mark.alone
def test_a_flood_of_clients_disturbs_no_transfer_and_leaves_nothing(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    workers, transfers = 24, 20
    server = start_server(paced_pattern)
    proxy = start_proxy(server, "--log-level", "warning", workers=workers, ready=False)
    wait_until(lambda: len(proxy.workers("idle")) == workers, "the workers")
    # What a process touches once and keeps is no leak, so all of it is touched before.
    transfer_in_a_flood(proxy, workers, FLOOD // 8)
    transfer_in_a_flood(proxy, transfers, FLOOD // 2)
    settle(proxy, workers)
    before = footprint(proxy)
    transfer_in_a_flood(proxy, transfers, FLOOD)
    settle(proxy, workers)
    after = footprint(proxy)
    assert after[0] == before[0]
    assert after[1] < before[1] * 1.1
    assert not proxy.log.matching("ended, ")


def transfer_in_a_flood(proxy: Proxy, transfers: int, count: int) -> None:
    """Make transfers, all of which must arrive whole, while clients come and go."""
    clients = [proxy.connect() for _ in range(transfers)]
    whole: List[bool] = []
    readers = [
        threading.Thread(target=lambda c=client: whole.append(is_whole(c))) for client in clients
    ]
    for client, reader in zip(clients, readers):
        client.sendall(b"p")
        reader.start()
    flood(proxy, count)
    for client, reader in zip(clients, readers):
        reader.join()
        client.close()
    assert whole == [True] * transfers


def settle(proxy: Proxy, workers: int) -> None:
    """Wait until the queue is worked off and all are idle.

    The title of a worker that has a short connection says idle too, its descriptors do not.
    """
    proxy.wait_for_workers(workers, "idle", timeout=60)
    assert not answers(proxy)
    pids = proxy.wait_for_workers(workers, "idle")
    wait_until(
        lambda: len({processes.open_files(pid) for pid in pids}) == 1,
        "each worker has as many descriptors as the others",
    )


def paced_pattern(connection: socket.socket) -> None:
    """The pattern for who says p, slowly enough that it lasts; the end for others."""
    if connection.recv(1) == b"p":
        for _ in range(BLOCKS):
            connection.sendall(BLOCK)
            time.sleep(0.01)
    connection.close()


def flood(proxy: Proxy, count: int) -> None:
    """Connect and close COUNT times, not counting those that find the queue full.

    A vsock resets them; a Unix socket tells a client that does not want to block.
    """
    done = 0
    while done < count:
        try:
            proxy.connect().close()
            done += 1
        except (ConnectionResetError, BlockingIOError):
            threading.Event().wait(0.01)


def footprint(proxy: Proxy) -> Tuple[List[int], int]:
    """Descriptors of each process, and the memory of all together."""
    pids = [proxy.pid, *proxy.children()]
    return [processes.open_files(pid) for pid in pids], sum(map(processes.anonymous_kib, pids))


# Limits


@pytest.fixture
def limit_files() -> Iterator[Callable[[int, int], None]]:
    """Sets the soft limit of open files of a live process."""
    needed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def limit(pid: int, count: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, needed))

    yield limit


def highest_file(pid: int) -> int:
    return max(map(int, os.listdir(f"/proc/{pid}/fd")))


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
    used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    return next(number for number in range(len(used) + 1) if number not in used)


@pytest.mark.alone
def test_a_lack_of_descriptors_costs_no_connection_and_no_cpu_time(
    start_proxy: StartProxy,
    start_server: StartServer,
    limit_files: Callable[[int, int], None],
) -> None:
    proxy = start_proxy(start_server(), workers=2)
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
            threading.Event().wait(1)
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


# What the log says, and how often


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_one_warning_tells_that_all_workers_are_busy_for_a_second(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    for round_of_clients in range(2):
        clients = [proxy.connect() for _ in range(2)]
        began = time.monotonic()
        if round_of_clients == 0:
            line = proxy.log.wait_for("warning master: all 2 workers are busy.*-w")[0]
            assert "-w" in line
            assert 0.9 < time.monotonic() - began < 1 + AT_ONCE * SLOWNESS
        else:
            threading.Event().wait(1.5)
        for client in clients:
            client.close()
        board.wait_until_idle(proxy, 2)
    assert len(proxy.log.matching("workers are busy")) == 1


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_all_workers_being_busy_for_a_moment_is_no_warning(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    for _ in range(4):
        with proxy.connect() as client:
            exchange(client, b"x")
            threading.Event().wait(0.3)
        board.wait_until_idle(proxy, 1)
        threading.Event().wait(0.3)
    assert not proxy.log.matching("workers are busy")


@pytest.mark.hybrid_only  # an emulated machine serves fewer than would be left out
@pytest.mark.alone
@pytest.mark.parametrize("workers", [2, 50])
def test_all_workers_together_bound_a_guests_lines_and_count_the_rest(
    workers: int, start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    server.close()
    proxy = start_proxy(server, workers=workers)
    began = time.monotonic()
    total = int(2000 / SLOWNESS)
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: answers(proxy), range(total)):
            pass
    # The last line is told without another one to be written.
    wait_until(lambda: shown(proxy) + left_out(proxy) == total, "lines that tell of all")
    took = time.monotonic() - began
    # The workers share one bound; on few processors hardly two take a place in the same instant.
    assert shown(proxy) <= 200 * (1 + took) + 10
    assert shown(proxy) < total
    assert len(proxy.log.matching("lines? (was|were) left out")) <= 2 + took


def shown(proxy: Proxy) -> int:
    return len(proxy.log.matching("cannot connect"))


def left_out(proxy: Proxy) -> int:
    """How many lines the log says were left out."""
    lines = proxy.log.matching(r"warning master: \d+ lines? (was|were) left out")
    return sum(int(re.findall(r"(\d+) lines? w", line)[0]) for line in lines)


# Who may connect


@pytest.mark.vsock_only
def test_a_guest_whose_cid_is_allowed_is_served(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), "--allow-cid", "1,16")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.vsock_only
def test_a_guest_whose_cid_is_not_allowed_is_closed_logged_and_counted(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, "--allow-cid", "16,17")
    with proxy.connect() as client:
        assert end_of(client) == b""
    proxy.log.wait_for(rf"warning worker \d: {ID}1:\d+ refused: its CID is not allowed")
    assert sum(row.failed for row in board.ask(proxy)) == 1
    assert "1 denied" in board.totals(proxy)
    assert not server.accepted
