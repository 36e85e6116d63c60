"""SIGUSR1: the table of what each worker does, and the totals."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board
from tests.support.servers import exchange, silent
from tests.support.timing import wait_until


@pytest.mark.tcp_too
def test_sigusr1_writes_what_every_worker_does_as_a_table(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, workers=3)
    proxy.wait_for_workers(3, "idle")
    with proxy.connect() as client:
        exchange(client, b"12345")
        # What was sent is counted after it was sent.
        wait_until(lambda: sum(row.down for row in board.ask(proxy)) == 5, "all is counted")
        rows = board.ask(proxy)
        assert [row.worker for row in rows] == ["1", "2", "3"]
        assert sorted(row.pid for row in rows) == sorted(proxy.workers())
        assert sorted(row.state for row in rows) == ["idle", "idle", "relaying"]
        busy = next(row for row in rows if row.state == "relaying")
        assert re.fullmatch(proxy.transport.peer_pattern, busy.client)
        assert (busy.endpoint, busy.up, busy.down) == ("127.0.0.1", 5, 5)
    wait_until(lambda: set(board.states(proxy)) == {"idle"}, "all are idle")
    assert "1 connections served, 0 failed" in board.totals(proxy)
    assert "5 bytes up, 5 bytes down" in board.totals(proxy)


def test_the_table_tells_half_closed_and_draining_connections(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=2)
    with proxy.connect() as client:
        proxy.wait_for_workers(1, " -> ")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: "half-closed" in board.states(proxy), "half-closed is told")
        proxy.send(signal.SIGTERM)
        wait_until(lambda: "draining" in board.states(proxy), "draining is told")


def test_the_table_counts_what_failed_by_its_cause(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    server.close()
    proxy = start_proxy(server)
    for _ in range(3):
        with proxy.connect() as client:
            try:
                client.recv(1)
            except ConnectionResetError:
                pass
    proxy.log.wait_for("cannot connect", count=3)
    assert sum(row.failed for row in board.ask(proxy)) == 3
    assert "3 failed (3 refused, " in board.totals(proxy)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_totals_outlive_a_worker(start_proxy: StartProxy, start_server: StartServer) -> None:
    proxy = start_proxy(start_server(), workers=1)
    with proxy.connect() as client:
        exchange(client, b"12345")
    wait_until(lambda: board.states(proxy) == ["idle"], "the connection is over")
    (old,) = proxy.workers()
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: set(proxy.workers("idle")) - {old}, "another worker")
    (row,) = board.ask(proxy)
    assert row.pid != old
    assert row.served == 1
    assert "5 bytes up, 5 bytes down" in board.totals(proxy)


def test_a_worker_killed_in_mid_connection_leaves_its_bytes_in_the_totals(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    with proxy.connect() as client:
        exchange(client, b"12345")
        (old,) = proxy.wait_for_workers(1, " -> ")
        wait_until(lambda: board.ask(proxy)[0].down == 5, "all is counted")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: set(proxy.workers("idle")) - {old}, "another worker")
        board.ask(proxy)
    assert "5 bytes up, 5 bytes down" in board.totals(proxy)
