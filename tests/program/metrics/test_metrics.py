"""What metrics say of a running proxy, over reloads and deaths too."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections import Counter
from http.client import HTTPException
from typing import Callable, Iterator, List, Tuple

import pytest

from tests.program.metrics.conftest import MetricsScene
from tests.support import board, processes
from tests.support.program import Proxy
from tests.support.scraping import (
    BYTES,
    CONNECT,
    CONNECTIONS,
    DURATION,
    EXPORTER,
    RESPAWNS,
    WORKERS,
    Address,
    connect,
    exporters,
    get,
    scrape,
    wait_for_value,
)
from tests.support.servers import exchange
from tests.support.services import echo_once, letter, letter_at, service
from tests.support.timing import SLOWNESS, let_pass, wait_until
from vsock_proxy.observing.saturation import LOOK_INTERVAL

Growing = Tuple[Proxy, Callable[[], int]]


@pytest.fixture
def closed() -> Iterator[Tuple[str, int]]:
    """An endpoint that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


# What is counted


def test_connections_and_bytes_are_counted_for_their_service(scene: MetricsScene) -> None:
    one, other, third = scene.ports(3)
    echo = scene.server()
    proxy = scene.start(service(one, echo), service(other, echo), service(third, echo), workers=1)
    for port, size in [(one, 1), (other, 10), (one, 100), (other, 1000)]:
        echo_once(proxy, port, bytes(size))
    wait_for_value(scene.metrics, 2, f"{DURATION}_count", service=other)
    metrics = scrape(scene.metrics)
    served = {
        port: metrics.value(CONNECTIONS, service=port, result="served")
        for port in (one, other, third)
    }
    assert served == {one: 2, other: 2, third: 0}
    for direction in ("up", "down"):
        assert metrics.value(BYTES, service=one, direction=direction) == 101
        assert metrics.value(BYTES, service=other, direction=direction) == 1010
        assert metrics.value(BYTES, service=third, direction=direction) == 0
    assert metrics.value(f"{CONNECT}_count", service=one) == 2
    assert metrics.value(f"{CONNECT}_bucket", service=one, le="+Inf") == 2
    assert 0 < metrics.value(f"{DURATION}_sum", service=one) < 60 * SLOWNESS
    assert metrics.sum(CONNECTIONS) == 4


def test_a_connection_that_lasts_is_seen_before_it_ends(scene: MetricsScene) -> None:
    proxy = scene.start_one()
    proxy.wait_for_workers(4, "idle")
    with proxy.connect() as client:
        assert exchange(client, bytes(1000)) == bytes(1000)
        wait_for_value(scene.metrics, 1000, BYTES, direction="down")
        metrics = scrape(scene.metrics)
        assert metrics.sum(CONNECTIONS, result="served") == 1
        assert metrics.sum(f"{DURATION}_count") == 0
        assert metrics.value(WORKERS, pool="shared", state="relaying") == 1
        assert metrics.value(WORKERS, pool="shared", state="idle") == 3
        client.shutdown(socket.SHUT_WR)
    wait_for_value(scene.metrics, 1, f"{DURATION}_count")
    wait_for_value(scene.metrics, 4, WORKERS, pool="shared", state="idle")


def test_a_connection_that_fails_is_counted_by_its_cause(
    scene: MetricsScene, closed: Tuple[str, int]
) -> None:
    proxy = scene.start_one(endpoint=closed)
    proxy.connect().close()
    line = r"Connection refused|had gone"
    proxy.log.wait_for(line)
    metrics = scrape(scene.metrics)
    cause = "refused" if "refused" in proxy.log.matching(line)[0] else "client_gone"
    assert metrics.sum(CONNECTIONS, result=cause) == 1
    assert metrics.sum(CONNECTIONS) == 1
    assert metrics.sum(f"{CONNECT}_count") == 0


def test_a_killed_worker_loses_no_count_and_its_successor_is_counted(scene: MetricsScene) -> None:
    proxy = scene.start_one(workers=1)
    with proxy.connect() as client:
        assert exchange(client, bytes(100)) == bytes(100)
        (worker,) = proxy.wait_for_workers(1)
        os.kill(worker, signal.SIGKILL)
        proxy.log.wait_for("worker died")
    wait_for_value(scene.metrics, 1, RESPAWNS, process="worker")
    echo_once(proxy, proxy.transport.port, bytes(10))
    wait_for_value(scene.metrics, 2, f"{DURATION}_count")
    metrics = scrape(scene.metrics)
    assert metrics.sum(CONNECTIONS, result="served") == 2
    assert metrics.sum(BYTES, direction="up") == 110


@pytest.mark.hybrid_only
def test_the_time_is_counted_in_which_all_workers_are_busy(scene: MetricsScene) -> None:
    proxy = scene.start_one(workers=1)
    name = "vsock_proxy_saturated_seconds_total"
    assert scrape(scene.metrics).value(name, pool="shared") == 0
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        wait_until(lambda: scrape(scene.metrics).value(name, pool="shared") >= 0.2, "it is counted")
    proxy.wait_for_workers(1, "idle")
    wait_for_value(scene.metrics, 1, WORKERS, pool="shared", state="idle")

    # Counted up to when the worker became idle, and no further.
    wait_until(lambda: _stays(scene.metrics, name), "it is over")


def _stays(address: Address, name: str) -> bool:
    before = scrape(address).value(name, pool="shared")
    let_pass(LOOK_INTERVAL, why="the master looks once more")
    return before == scrape(address).value(name, pool="shared")


@pytest.mark.hybrid_only
def test_lookups_of_a_name_are_counted_and_the_last_good_one_has_its_time(
    scene: MetricsScene,
) -> None:
    server = scene.server()
    scene.start_one("--resolve-interval", "0.1", endpoint=("localhost", server.port))
    name = "vsock_proxy_dns_lookups_total"
    wait_until(lambda: scrape(scene.metrics).sum(name, result="success") >= 2, "two lookups")
    metrics = scrape(scene.metrics)
    assert metrics.sum(name, result="failure") == 0
    started = metrics.value("process_start_time_seconds")
    last = metrics.sum("vsock_proxy_dns_last_success_timestamp_seconds")
    assert started - 1 < last < started + 60 * SLOWNESS


@pytest.mark.hybrid_only
def test_where_nothing_is_looked_up_there_are_no_lookups(scene: MetricsScene) -> None:
    scene.start_one()
    assert "dns" not in "".join(name for name, _ in scrape(scene.metrics).totals())


def test_metrics_and_the_scoreboard_say_the_same(
    scene: MetricsScene, closed: Tuple[str, int]
) -> None:
    one, other = scene.ports(2)
    echo = scene.server()
    proxy = scene.start(service(one, echo), service(other, closed))
    for size in (1, 1000):
        echo_once(proxy, one, bytes(size))
    with proxy.connect(other):
        proxy.log.wait_for("Connection refused")
    with proxy.connect(one) as client:
        assert exchange(client, bytes(10)) == bytes(10)
        (worker,) = proxy.wait_for_workers(1, f"[{one}: ")
        os.kill(worker, signal.SIGKILL)
        proxy.log.wait_for("worker died")
    scene.reload(proxy, service(one, echo, idle_timeout=60), service(other, closed))
    wait_until(lambda: len(proxy.workers()) == 4, "the old workers are gone")
    with proxy.connect(one) as first, proxy.connect(one) as second:
        for client in (first, second):
            assert exchange(client, bytes(100)) == bytes(100)
        wait_for_value(scene.metrics, 2, WORKERS, state="relaying")
        states = Counter(row.state for row in board.ask(proxy))
        metrics = scrape(scene.metrics)
        for state, count in states.items():
            assert metrics.value(WORKERS, pool="shared", state=state.replace("-", "_")) == count
        assert metrics.sum(WORKERS) == sum(states.values()) == 4
    wait_for_value(scene.metrics, 5, f"{DURATION}_count")
    wait_for_value(scene.metrics, 4, WORKERS, state="idle")
    board.ask(proxy)
    said = re.findall(r"(\d+) (served|failed|refused|bytes up|bytes down)", totals_in_words(proxy))
    metrics = scrape(scene.metrics)
    assert {what: int(number) for number, what in said} == {
        "served": metrics.sum(CONNECTIONS, result="served"),
        "failed": metrics.sum(CONNECTIONS) - metrics.sum(CONNECTIONS, result="served"),
        "refused": metrics.value(CONNECTIONS, service=other, result="refused"),
        "bytes up": metrics.sum(BYTES, direction="up"),
        "bytes down": metrics.sum(BYTES, direction="down"),
    }
    assert metrics.sum(CONNECTIONS, result="served") == 5


def totals_in_words(proxy: Proxy) -> str:
    return board.totals(proxy).replace("connections served", "served")


# What outlives what


def test_no_total_goes_back_when_pools_are_replaced_and_services_are_gone(
    scene: MetricsScene,
) -> None:
    stays, goes, own = scene.ports(3)
    a = scene.server(letter(b"a"))
    proxy = scene.start(service(stays, a), service(goes, a), service(own, a, workers=1))
    for port in (stays, goes, goes, own):
        assert letter_at(proxy, port) == b"a"
    wait_for_value(scene.metrics, 4, f"{DURATION}_count")
    seen = scrape(scene.metrics).totals()

    def is_kept() -> None:
        now = scrape(scene.metrics).totals()
        assert {
            key: (value, now.get(key)) for key, value in seen.items() if now.get(key, -1) < value
        } == {}

    # The shared pool is replaced, a service and a pool of its own are gone.
    scene.reload(proxy, service(stays, a, idle_timeout=60))
    is_kept()
    wait_until(lambda: len(proxy.workers()) == 4, "the old workers are gone")
    is_kept()
    # They come back, where they lead elsewhere.
    b = scene.server(letter(b"b"))
    scene.reload(proxy, service(stays, b), service(goes, b), service(own, b, workers=1))
    assert letter_at(proxy, goes) == b"b"
    wait_for_value(scene.metrics, 3, CONNECTIONS, service=goes, result="served")
    is_kept()


@pytest.mark.hybrid_only
def test_no_total_goes_back_when_the_process_for_metrics_is_killed(scene: MetricsScene) -> None:
    proxy = scene.start_one()
    echo_once(proxy, proxy.transport.port)
    wait_for_value(scene.metrics, 1, f"{DURATION}_count")
    before = scrape(scene.metrics).totals()
    exporter = proxy.wait_for_child(EXPORTER)
    os.kill(exporter, signal.SIGKILL)
    proxy.log.wait_for(r"warning master: metrics ended, signal 9 \(Killed\); starting another")
    # Meanwhile who asks waits, and is not refused.
    metrics = scrape(scene.metrics)
    assert metrics.value(RESPAWNS, process="metrics") == 1
    assert exporters(proxy) != [exporter]
    after = metrics.totals()
    assert all(after[key] >= value for key, value in before.items())


@pytest.mark.hybrid_only
def test_no_scrape_is_refused_or_broken_off_by_reloads(scene: MetricsScene) -> None:
    (port,) = scene.ports(1)
    server = scene.server()
    proxy = scene.start(service(port, server), workers=1)
    over = threading.Event()
    seen: List[object] = []

    def ask() -> None:
        while not over.is_set():
            try:
                seen.append(get(scene.metrics, "/metrics").status)
            except (OSError, HTTPException) as error:
                seen.append(error)

    scraper = threading.Thread(target=ask)
    scraper.start()
    try:
        for seconds in (60, 70, 80):
            scene.reload(proxy, service(port, server, idle_timeout=seconds))
            asked = len(seen)
            wait_until(lambda asked=asked: len(seen) > asked + 1, "a scrape after the reload")  # type: ignore[misc]
    finally:
        over.set()
        scraper.join()
    assert set(seen) == {200}
    proxy.wait_for_child(EXPORTER)


@pytest.fixture
def growing(scene: MetricsScene) -> Growing:
    """A proxy with one service, and what adds another by a reload; returns its name."""
    one, other = scene.ports(2)
    server = scene.server()
    proxy = scene.start(service(one, server))

    def add() -> int:
        scene.reload(proxy, service(one, server), service(other, server))
        return other

    return proxy, add


@pytest.mark.hybrid_only
def test_a_reload_shows_new_services_and_answers_an_earlier_slow_scraper(
    growing: Growing, scene: MetricsScene
) -> None:
    proxy, add = growing
    before = proxy.wait_for_child(EXPORTER)
    with connect(scene.metrics) as slow:
        slow.sendall(b"GET /metrics HTTP/1.0\r\n")
        # Answered in turn, so the slow one has been accepted.
        assert get(scene.metrics, "/healthz").status == 200
        added = add()
        assert scrape(scene.metrics).has(CONNECTIONS, service=added, result="served")
        slow.sendall(b"\r\n")
        assert slow.recv(12) == b"HTTP/1.0 200"
    wait_until(lambda: before not in exporters(proxy), "the process of before has ended")


@pytest.mark.hybrid_only
def test_a_scrape_after_a_reload_is_not_answered_by_the_earlier_process(
    growing: Growing, scene: MetricsScene
) -> None:
    proxy, add = growing
    before = proxy.wait_for_child(EXPORTER)
    processes.stop(before)
    added = add()
    wait_until(lambda: len(exporters(proxy)) == 2, "another process serves metrics")
    (later,) = set(exporters(proxy)) - {before}
    processes.stop(later)
    with connect(scene.metrics) as scraper:
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        # It finds the scraper and the signal that another has its place at once.
        os.kill(before, signal.SIGCONT)
        wait_until(lambda: before not in exporters(proxy), "the process of before has ended")
        os.kill(later, signal.SIGCONT)
        with scraper.makefile("rb") as answer:
            assert f'service="{added}"'.encode() in answer.read()
