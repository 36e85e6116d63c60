"""Many clients: whoever waits is served in turn, and a flood disturbs nobody."""

from __future__ import annotations

import select
import socket
import threading
from typing import List, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import answers
from tests.support.pattern import BLOCK, BLOCKS, is_whole
from tests.support.program import Proxy
from tests.support.servers import CHUNK, read_exactly
from tests.support.timing import SLOWNESS, let_pass, wait_until

FLOOD = int(20_000 / SLOWNESS)


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
            let_pass(0.01, why="the transfer lasts as long as the flood")
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
            let_pass(0.01, why="the proxy accepts some of the queue")


def footprint(proxy: Proxy) -> Tuple[List[int], int]:
    """Descriptors of each process, and the memory of all together."""
    pids = [proxy.pid, *proxy.children()]
    return [processes.open_files(pid) for pid in pids], sum(map(processes.anonymous_kib, pids))
