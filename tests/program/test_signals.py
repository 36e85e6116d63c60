"""Signals that end the proxy, and storms of signals: what live connections notice is nothing."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Callable, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.pattern import is_whole, send_pattern
from tests.support.servers import exchange, read_exactly, silent
from tests.support.timing import AT_ONCE, SLOWNESS, at_full_length, is_within, let_pass, wait_until
from vsock_proxy.process.signals import Interrupted, Signals


def seconds_until_gone(pids: List[int], cause: Callable[[], None]) -> float:
    """How long after a cause the last of these processes ended, to the kernel's accuracy."""
    watched = [os.pidfd_open(pid) for pid in pids]
    began = time.monotonic()
    cause()
    for fd in watched:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(10_000 * SLOWNESS), "a process did not end"
    took = time.monotonic() - began
    for fd in watched:
        os.close(fd)
    return took


def close_all(clients: List[socket.socket]) -> None:
    for client in clients:
        client.close()


# SIGTERM, and a second signal


@pytest.mark.alone
def test_an_idle_proxy_is_gone_100_ms_after_sigterm(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    def end() -> float:
        proxy = start_proxy(start_server())
        proxy.wait_for_workers(4, "idle")
        pids = [proxy.pid, *proxy.children()]
        took = seconds_until_gone(pids, lambda: proxy.send(signal.SIGTERM))
        assert proxy.wait() == os.EX_OK
        return took

    assert is_within(0.1, end)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("milliseconds", range(20, 200, 15))
def test_sigterm_at_any_moment_of_the_start_is_obeyed(
    start_proxy: StartProxy, start_server: StartServer, milliseconds: int
) -> None:
    proxy = start_proxy(start_server(), ready=False)
    let_pass(milliseconds / 1000, why="the signal comes at this moment of the start")
    proxy.send(signal.SIGTERM)
    # Before there is anything to end in peace, the signal itself ends it.
    assert proxy.wait(timeout=2) in (os.EX_OK, -signal.SIGTERM)


@pytest.mark.tcp_too
def test_sigterm_lets_transfers_arrive_whole_and_then_all_processes_end(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_pattern))
    clients = [proxy.connect() for _ in range(3)]
    firsts = [read_exactly(client, 1000) for client in clients]
    proxy.send(signal.SIGTERM)
    pids = [proxy.pid, *proxy.wait_for_workers(3)]
    assert all(is_whole(client, first) for first, client in zip(firsts, clients))
    assert not proxy.has_ended()
    assert seconds_until_gone(pids, lambda: close_all(clients)) < AT_ONCE * SLOWNESS
    assert proxy.wait() == os.EX_OK


@pytest.mark.tcp_too
def test_a_queued_client_is_not_left_waiting_by_sigterm(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    with proxy.connect() as holder:
        exchange(holder, b"x")
        with proxy.connect() as queued:
            queued.sendall(b"y")
            proxy.send(signal.SIGTERM)
            try:
                assert queued.recv(1) == b""
            except ConnectionResetError:
                pass


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.alone
def test_a_second_signal_in_mid_transfer_ends_all_at_once(
    second: signal.Signals, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(send_pattern))
    with proxy.connect() as client:
        read_exactly(client, 1000)
        proxy.send(signal.SIGTERM)
        pids = [proxy.pid, *proxy.wait_for_workers(1)]
        assert seconds_until_gone(pids, lambda: proxy.send(second)) < AT_ONCE * SLOWNESS
    assert proxy.wait() == os.EX_OK
    proxy.log.wait_for(f"{second.name}: ending now")


def test_sigquit_ends_all_at_once_the_first_time(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server)
    with proxy.connect() as client:
        client.sendall(b"x")
        endpoint = server.wait_for_connections(1)[0]
        assert endpoint.recv(1) == b"x"
        pids = [proxy.pid, *proxy.children()]
        assert seconds_until_gone(pids, lambda: proxy.send(signal.SIGQUIT)) < AT_ONCE * SLOWNESS
        # What was cut must not look complete.
        with pytest.raises(ConnectionResetError):
            endpoint.recv(1)


@pytest.mark.tcp_too
def test_a_sigquit_to_the_whole_group_resets_and_logs_every_connection(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    workers = 12
    proxy = start_proxy(server, workers=workers, wrapper=["setsid"])
    clients = [proxy.connect() for _ in range(workers)]
    for client in clients:
        client.sendall(b"x")
    endpoints = server.wait_for_connections(workers)
    for endpoint in endpoints:
        read_exactly(endpoint, 1)
    # Both the terminal and the master send it.
    os.killpg(proxy.pid, signal.SIGQUIT)
    assert proxy.wait() == os.EX_OK
    for endpoint in endpoints:
        with pytest.raises(ConnectionResetError):
            endpoint.recv(1)
    close_all(clients)
    proxy.log.join()
    assert (
        len(proxy.log.matching(" ended: 1 bytes up, 0 bytes down, .*, proxy ends now")) == workers
    )
    assert proxy.log.matching(f"{workers} bytes up, 0 bytes down")


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("pause", [0.0, 0.0003, 0.0006, 0.0009])
def test_a_sigterm_to_the_group_during_another_signal_replaces_no_worker(
    start_proxy: StartProxy, start_server: StartServer, pause: float
) -> None:
    proxy = start_proxy(start_server(), workers=8, wrapper=["setsid"])
    proxy.wait_for_workers(8, "idle")
    os.killpg(proxy.pid, signal.SIGHUP)
    let_pass(pause, why="the master is in the middle of obeying the first")
    os.killpg(proxy.pid, signal.SIGTERM)
    assert proxy.wait() == os.EX_OK
    proxy.log.join()
    assert not proxy.log.matching("starting another")


def test_a_stopped_worker_does_not_keep_the_proxy_from_ending(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), "--drain-timeout", "0.2")
    stopped = proxy.wait_for_workers(4, "idle")[0]
    processes.stop(stopped)
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=5) == os.EX_OK
    assert not processes.is_alive(stopped)


def test_a_sigkill_of_the_master_lets_transfers_arrive_whole(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(send_pattern)
    proxy = start_proxy(server)
    clients = [proxy.connect() for _ in range(3)]
    firsts = [read_exactly(client, 1000) for client in clients]
    pids = proxy.children()
    proxy.send(signal.SIGKILL)
    proxy.wait()
    wait_until(lambda: sum(map(processes.is_alive, pids)) == 3, "the idle worker is gone")
    assert all(is_whole(client, first) for first, client in zip(firsts, clients))
    close_all(clients)
    wait_until(lambda: not any(map(processes.is_alive, pids)), "no process is left")
    again = start_proxy(server)
    with again.connect() as client:
        assert read_exactly(client, 4) == b"\0\1\2\3"


# Many signals


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_storm_of_signals_ends_nothing(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    pids = sorted(proxy.wait_for_workers(4))
    with proxy.connect() as live:
        for _ in range(500):
            proxy.send(signal.SIGUSR1)
            proxy.send(signal.SIGHUP)
            proxy.send(signal.SIGCHLD)
        assert exchange(live, b"x") == b"x"
    with proxy.connect() as client:
        assert exchange(client, b"y") == b"y"
    assert sorted(proxy.workers()) == pids


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR1, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2],
    ids=lambda number: number.name,
)
def test_a_flood_of_one_signal_neither_hides_another_nor_delays_the_end(
    start_proxy: StartProxy, start_server: StartServer, number: signal.Signals
) -> None:
    proxy = start_proxy(start_server())
    workers = proxy.wait_for_workers(4, "idle")
    until = time.monotonic() + at_full_length(2.0, 0.7)
    while time.monotonic() < until:
        os.kill(proxy.pid, number)
    os.kill(workers[0], signal.SIGKILL)
    proxy.log.wait_for("ended, signal 9 .Killed.; starting another", timeout=1)
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=1) == os.EX_OK


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_end_comes_before_a_reload_that_was_asked_for_first(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    # Stopped, so that the signals are pending together.
    processes.stop(proxy.pid)
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
        proxy.send(number)
    assert proxy.wait() == os.EX_OK
    proxy.log.join()
    assert proxy.log.matching("SIGTERM: no new connections")
    assert not proxy.log.matching("allowlist read again")


# In one process


@pytest.mark.hybrid_only
def test_no_signal_is_lost_by_a_pipe_that_is_full_of_others(signals: Signals) -> None:
    assert signals.take() == []
    # A pipe takes 65,536 bytes, of which each signal sends two.
    for _ in range(40_000):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGHUP)
    assert signals.take() == [signal.SIGHUP, signal.SIGUSR1]
    assert signals.take() == []


@pytest.mark.hybrid_only
def test_only_a_signal_that_asks_for_the_end_breaks_off_what_takes_long(signals: Signals) -> None:
    assert signals.unless_told_to_end(lambda: signal.raise_signal(signal.SIGHUP)) is None
    with pytest.raises(Interrupted):
        signals.unless_told_to_end(lambda: signal.raise_signal(signal.SIGTERM))
    # It stays to be taken, so that what comes next is broken off too.
    with pytest.raises(Interrupted):
        signals.unless_told_to_end(list)
    assert signals.take() == [signal.SIGTERM, signal.SIGHUP]
    assert signals.unless_told_to_end(list) == []
