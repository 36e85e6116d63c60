"""Metrics and health of a running proxy, asked for as Prometheus and a probe ask."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
from prometheus_client.openmetrics import parser as openmetrics

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes, seccomp
from tests.support.program import PROJECT, Proxy, Transport, run
from tests.support.scraping import (
    Address,
    connect,
    exporters,
    get,
    scrape,
    wait_for_line,
)
from tests.support.servers import exchange, read_exactly
from tests.support.services import ServicesFile, letter, letter_at, service
from tests.support.timing import AT_ONCE, SLOWNESS, is_within, wait_until
from vsock_proxy.observing import http_answers
from vsock_proxy.observing.exporter import NICENESS
from vsock_proxy.observing.saturation import LOOK_INTERVAL

# The most that there is (setpriority(2)).
NICEST = 19
CONNECTIONS = "vsock_proxy_connections_total"
BYTES = "vsock_proxy_bytes_total"
WORKERS = "vsock_proxy_workers"
RESPAWNS = "vsock_proxy_respawns_total"
DURATION = "vsock_proxy_connection_duration_seconds"
CONNECT = "vsock_proxy_connect_duration_seconds"
WITHOUT_EXTRA = """
import sys
sys.modules["prometheus_client"] = None
from vsock_proxy.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def address(tmp_path: Path) -> Path:
    """Where metrics are served."""
    return tmp_path / "metrics"


@pytest.fixture
def option(address: Path) -> Tuple[str, str]:
    return "--metrics", f"unix:{address}"


@pytest.fixture
def closed() -> Iterator[Tuple[str, int]]:
    """An endpoint that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


def one_connection(proxy: Proxy, port: int, data: bytes = b"x") -> None:
    with proxy.connect(port) as client:
        assert exchange(client, data) == data


def wait_for(address: Address, value: float, name: str, **labels: object) -> None:
    wait_until(lambda: scrape(address).sum(name, **labels) == value, f"{name} {labels} is {value}")


# What is counted


def test_connections_and_bytes_are_counted_for_the_service_that_they_were_of(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    address: Path,
    option: Tuple[str, str],
) -> None:
    one, other, third = transport.ports(3)
    echo = start_server()
    proxy = start_services(
        service(one, echo), service(other, echo), service(third, echo), options=option, workers=1
    )
    for port, size in [(one, 1), (other, 10), (one, 100), (other, 1000)]:
        one_connection(proxy, port, bytes(size))
    wait_for(address, 2, f"{DURATION}_count", service=other)
    metrics = scrape(address)
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


def test_a_connection_that_lasts_is_seen_before_it_ends(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option)
    with proxy.connect() as client:
        assert exchange(client, bytes(1000)) == bytes(1000)
        wait_for(address, 1000, BYTES, direction="down")
        metrics = scrape(address)
        assert metrics.sum(CONNECTIONS, result="served") == 1
        assert metrics.sum(f"{DURATION}_count") == 0
        assert metrics.value(WORKERS, pool="shared", state="relaying") == 1
        assert metrics.value(WORKERS, pool="shared", state="idle") == 3
        client.shutdown(socket.SHUT_WR)
    wait_for(address, 1, f"{DURATION}_count")
    wait_for(address, 4, WORKERS, pool="shared", state="idle")


def test_a_connection_that_fails_is_counted_by_its_cause(
    start_proxy: StartProxy, closed: Tuple[str, int], address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(closed, *option)
    proxy.connect().close()
    line = r"Connection refused|had gone"
    proxy.log.wait_for(line)
    metrics = scrape(address)
    cause = "refused" if "refused" in proxy.log.matching(line)[0] else "client_gone"
    assert metrics.sum(CONNECTIONS, result=cause) == 1
    assert metrics.sum(CONNECTIONS) == 1
    assert metrics.sum(f"{CONNECT}_count") == 0


def test_a_worker_that_is_killed_loses_no_count_and_has_a_successor_that_is_counted(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option, workers=1)
    with proxy.connect() as client:
        assert exchange(client, bytes(100)) == bytes(100)
        (worker,) = proxy.wait_for_workers(1)
        os.kill(worker, signal.SIGKILL)
        proxy.log.wait_for("worker died")
    wait_for(address, 1, RESPAWNS, process="worker")
    one_connection(proxy, proxy.transport.port, bytes(10))
    wait_for(address, 2, f"{DURATION}_count")
    metrics = scrape(address)
    assert metrics.sum(CONNECTIONS, result="served") == 2
    assert metrics.sum(BYTES, direction="up") == 110


@pytest.mark.hybrid_only
def test_the_time_is_counted_in_which_all_workers_are_busy(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option, workers=1)
    name = "vsock_proxy_saturated_seconds_total"
    assert scrape(address).value(name, pool="shared") == 0
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        wait_until(lambda: scrape(address).value(name, pool="shared") >= 0.2, "it is counted")
    proxy.wait_for_workers(1, "idle")
    wait_for(address, 1, WORKERS, pool="shared", state="idle")

    # Counted up to when the worker became idle, and no further.
    wait_until(lambda: _stays(address, name), "it is over")


def _stays(address: Address, name: str) -> bool:
    before = scrape(address).value(name, pool="shared")
    time.sleep(LOOK_INTERVAL)
    return before == scrape(address).value(name, pool="shared")


@pytest.mark.hybrid_only
def test_lookups_of_a_name_are_counted_and_the_last_good_one_has_its_time(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    server = start_server()
    start_proxy(("localhost", server.port), *option, "--resolve-interval", "0.1")
    name = "vsock_proxy_dns_lookups_total"
    wait_until(lambda: scrape(address).sum(name, result="success") >= 2, "two lookups")
    metrics = scrape(address)
    assert metrics.sum(name, result="failure") == 0
    started = metrics.value("process_start_time_seconds")
    last = metrics.sum("vsock_proxy_dns_last_success_timestamp_seconds")
    assert started - 1 < last < started + 60 * SLOWNESS


@pytest.mark.hybrid_only
def test_where_nothing_is_looked_up_there_are_no_lookups(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    start_proxy(start_server(), *option)
    assert "dns" not in "".join(name for name, _ in scrape(address).totals())


def test_metrics_and_the_scoreboard_say_the_same(
    start_services: StartProxy,
    start_server: StartServer,
    services_file: ServicesFile,
    transport: Transport,
    closed: Tuple[str, int],
    address: Path,
    option: Tuple[str, str],
) -> None:
    one, other = transport.ports(2)
    echo = start_server()
    proxy = start_services(service(one, echo), service(other, closed), options=option)
    for size in (1, 1000):
        one_connection(proxy, one, bytes(size))
    with proxy.connect(other):
        proxy.log.wait_for("Connection refused")
    with proxy.connect(one) as client:
        assert exchange(client, bytes(10)) == bytes(10)
        (worker,) = proxy.wait_for_workers(1, f"[{one}: ")
        os.kill(worker, signal.SIGKILL)
        proxy.log.wait_for("worker died")
    services_file.reload(proxy, service(one, echo, idle_timeout=60), service(other, closed))
    wait_until(lambda: len(proxy.workers()) == 4, "the old workers are gone")
    with proxy.connect(one) as first, proxy.connect(one) as second:
        for client in (first, second):
            assert exchange(client, bytes(100)) == bytes(100)
        wait_for(address, 2, WORKERS, state="relaying")
        states = Counter(row.state for row in board.ask(proxy))
        metrics = scrape(address)
        for state, count in states.items():
            assert metrics.value(WORKERS, pool="shared", state=state.replace("-", "_")) == count
        assert metrics.sum(WORKERS) == sum(states.values()) == 4
    wait_for(address, 5, f"{DURATION}_count")
    wait_for(address, 4, WORKERS, state="idle")
    board.ask(proxy)
    said = re.findall(r"(\d+) (served|failed|refused|bytes up|bytes down)", totals_in_words(proxy))
    metrics = scrape(address)
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
    start_services: StartProxy,
    start_server: StartServer,
    services_file: ServicesFile,
    transport: Transport,
    address: Path,
    option: Tuple[str, str],
) -> None:
    stays, goes, own = transport.ports(3)
    a = start_server(letter(b"a"))
    proxy = start_services(
        service(stays, a), service(goes, a), service(own, a, workers=1), options=option
    )
    for port in (stays, goes, goes, own):
        assert letter_at(proxy, port) == b"a"
    wait_for(address, 4, f"{DURATION}_count")
    seen = scrape(address).totals()

    def is_kept() -> None:
        now = scrape(address).totals()
        assert {
            key: (value, now.get(key)) for key, value in seen.items() if now.get(key, -1) < value
        } == {}

    # The shared pool is replaced, a service and a pool of its own are gone.
    services_file.reload(proxy, service(stays, a, idle_timeout=60))
    is_kept()
    wait_until(lambda: len(proxy.workers()) == 4, "the old workers are gone")
    is_kept()
    # They come back, where they lead elsewhere.
    b = start_server(letter(b"b"))
    services_file.reload(proxy, service(stays, b), service(goes, b), service(own, b, workers=1))
    assert letter_at(proxy, goes) == b"b"
    wait_for(address, 3, CONNECTIONS, service=goes, result="served")
    is_kept()


@pytest.mark.hybrid_only
def test_no_total_goes_back_when_the_process_for_metrics_is_killed(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option)
    one_connection(proxy, proxy.transport.port)
    wait_for(address, 1, f"{DURATION}_count")
    before = scrape(address).totals()
    (exporter,) = exporters(proxy)
    os.kill(exporter, signal.SIGKILL)
    proxy.log.wait_for(r"warning master: metrics ended, signal 9 \(Killed\); starting another")
    # Meanwhile who asks waits, and is not refused.
    metrics = scrape(address)
    assert metrics.value(RESPAWNS, process="metrics") == 1
    assert exporters(proxy) != [exporter]
    after = metrics.totals()
    assert all(after[key] >= value for key, value in before.items())


@pytest.mark.hybrid_only
def test_no_scrape_is_refused_or_broken_off_by_reloads(
    start_services: StartProxy,
    start_server: StartServer,
    services_file: ServicesFile,
    transport: Transport,
    address: Path,
    option: Tuple[str, str],
) -> None:
    (port,) = transport.ports(1)
    server = start_server()
    proxy = start_services(service(port, server), options=option, workers=1)
    over = threading.Event()
    seen: List[object] = []

    def ask() -> None:
        while not over.is_set():
            try:
                seen.append(get(address, "/metrics").status)
            except (OSError, HTTPException) as error:
                seen.append(error)

    scraper = threading.Thread(target=ask)
    scraper.start()
    try:
        for seconds in (60, 70, 80):
            services_file.reload(proxy, service(port, server, idle_timeout=seconds))
            asked = len(seen)
            wait_until(lambda asked=asked: len(seen) > asked + 1, "a scrape after the reload")  # type: ignore[misc]
    finally:
        over.set()
        scraper.join()
    assert set(seen) == {200}
    wait_until(lambda: len(exporters(proxy)) == 1, "one process for metrics is left")


@pytest.mark.hybrid_only
def test_a_reload_shows_new_services_and_a_slow_scraper_of_before_gets_its_answer(
    start_services: StartProxy,
    start_server: StartServer,
    services_file: ServicesFile,
    transport: Transport,
    address: Path,
    option: Tuple[str, str],
) -> None:
    one, other = transport.ports(2)
    server = start_server()
    proxy = start_services(service(one, server), options=option)
    (before,) = exporters(proxy)
    with connect(address) as slow:
        slow.sendall(b"GET /metrics HTTP/1.0\r\n")
        # Answered in turn, so the slow one has been accepted.
        assert get(address, "/healthz").status == 200
        services_file.reload(proxy, service(one, server), service(other, server))
        assert scrape(address).has(CONNECTIONS, service=other, result="served")
        slow.sendall(b"\r\n")
        assert slow.recv(12) == b"HTTP/1.0 200"
    wait_until(lambda: before not in exporters(proxy), "the process of before has ended")


# What the process has and does


def test_the_process_for_metrics_holds_no_listener_of_a_service_and_workers_not_its_own(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    address: Path,
    option: Tuple[str, str],
) -> None:
    one, other = transport.ports(2)
    server = start_server()
    proxy = start_services(
        service(one, server), service(other, ("localhost", server.port)), options=option
    )
    scrape(address)
    with proxy.connect(one) as client:
        assert exchange(client, b"x") == b"x"
        (exporter,) = exporters(proxy)
        # That of the scrape is closed a moment after the answer.
        wait_until(lambda: len(sockets_of(exporter)) == 1, "it holds nothing but its listener")
        own = sockets_of(exporter)
        for worker in proxy.workers():
            assert not own & sockets_of(worker)
        (resolver,) = [
            pid for pid, title in zip(proxy.children(), proxy.titles()) if "resolver" in title
        ]
        assert not own & sockets_of(resolver)


def sockets_of(pid: int) -> set[str]:
    # That which is stderr aside, every process has it.
    return {name for name in processes.file_names(pid) if name.startswith("socket:")}


@pytest.mark.hybrid_only
def test_the_process_for_metrics_makes_way_for_connections(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option)
    scrape(address)
    (exporter,) = exporters(proxy)
    expected = min(os.getpriority(os.PRIO_PROCESS, proxy.pid) + NICENESS, NICEST)
    assert os.getpriority(os.PRIO_PROCESS, exporter) == expected


@pytest.mark.hybrid_only
def test_a_sandbox_that_forbids_to_make_way_does_not_keep_metrics_from_being_served(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    # As the units of the packages do.
    if seccomp.why_not():
        pytest.skip(seccomp.why_not())
    sandbox = [sys.executable, "-m", "tests.support.seccomp", "setpriority", "EPERM"]
    proxy = start_proxy(start_server(), *option, wrapper=sandbox)
    assert get(address, "/healthz").status == 200
    assert proxy.log.matching(" metrics") == []


@pytest.mark.hybrid_only
def test_a_scrape_makes_no_line_in_the_log(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option, "--log-level", "debug", ready=False)
    proxy.wait_ready()
    scrape(address)
    with connect(address) as odd:
        odd.sendall(b"\x00\xff\r\n\r\n")
        assert odd.recv(1024)
    get(address, "/nowhere")
    one_connection(proxy, proxy.transport.port)
    proxy.log.wait_for("ended: 1 bytes up")
    assert proxy.log.matching(" metrics: ") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.hybrid_only
def test_a_signal_to_the_whole_group_does_not_end_the_process_for_metrics(
    start_proxy: StartProxy,
    start_server: StartServer,
    address: Path,
    option: Tuple[str, str],
    number: signal.Signals,
) -> None:
    proxy = start_proxy(start_server(), *option)
    scrape(address)
    (exporter,) = exporters(proxy)
    os.kill(exporter, number)
    scrape(address)
    assert exporters(proxy) == [exporter]


def test_metrics_are_served_until_the_last_connection_has_drained_and_then_the_path_is_gone(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        proxy.send(signal.SIGTERM)
        wait_for_line(address, "/readyz", 503, "not ready: draining")
        wait_for_line(address, "/healthz", 200, "healthy: draining")
        wait_for(address, 1, WORKERS, state="draining")
        assert exchange(client, b"y") == b"y"
    assert proxy.wait() == 0
    assert not address.exists()


@pytest.mark.hybrid_only
def test_the_process_for_metrics_ends_with_the_master(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option)
    scrape(address)
    (exporter,) = exporters(proxy)
    proxy.send(signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(exporter), "it has ended")


# Health


@pytest.mark.hybrid_only
def test_it_is_not_healthy_while_the_master_does_not_answer(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option)
    wait_for_line(address, "/healthz", 200, "healthy: 1 service\n")
    proxy.send(signal.SIGSTOP)
    wait_for_line(address, "/healthz", 503, "not healthy: the master does not answer\n")
    proxy.send(signal.SIGCONT)
    wait_for_line(address, "/healthz", 200, "healthy: 1 service\n")


def test_it_is_ready_unless_the_last_connect_of_a_service_has_failed(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    address: Path,
    option: Tuple[str, str],
) -> None:
    (port,) = transport.ports(1)
    server = start_server()
    proxy = start_services(service(port, server), options=option)
    wait_for_line(address, "/readyz", 200, "ready: 1 service\n")
    server.close()
    with proxy.connect(port):
        proxy.log.wait_for("Connection refused")
    wait_for_line(address, "/readyz", 503, f"not ready: the last connect failed, of {port} to ")
    start_server(port=server.port)
    one_connection(proxy, port)
    wait_for_line(address, "/readyz", 200, "ready: 1 service\n")


# Who asks


@pytest.mark.hybrid_only
def test_metrics_are_in_openmetrics_when_that_is_asked_for(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    start_proxy(start_server(), *option)
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    response = get(address, "/metrics", asked)
    assert response.kind.startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")
    families = openmetrics.text_string_to_metric_families(response.text)  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"vsock_proxy_connections", "vsock_proxy_build", DURATION} <= names


@pytest.mark.hybrid_only
def test_metrics_are_by_the_conventions_of_prometheus(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    server = start_server()
    start_proxy(("localhost", server.port), *option)
    response = get(address, "/metrics")
    assert response.kind == "text/plain; version=0.0.4; charset=utf-8"
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=response.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.hybrid_only
def test_metrics_are_served_on_tcp_and_the_port_is_free_at_the_end(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    host = ".".join(["127", *(str(random.randrange(1, 255)) for _ in range(3))])
    port = random.randrange(1 << 10, 1 << 15)
    proxy = start_proxy(start_server(), "--metrics", f"{host}:{port}")
    assert get((host, port), "/healthz").status == 200
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        wait_until(lambda: scrape((host, port)).sum(CONNECTIONS) == 1, "it is counted")
        # A worker that outlives the master does not keep the port.
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: is_free(host, port), "the port is free")


def is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics?name[]=x", 200),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 501),
    ],
)
@pytest.mark.hybrid_only
def test_each_request_has_the_answer_of_http(
    start_proxy: StartProxy,
    start_server: StartServer,
    address: Path,
    option: Tuple[str, str],
    method: str,
    path: str,
    status: int,
) -> None:
    start_proxy(start_server(), *option)
    response = get(address, path, method=method)
    assert response.status == status
    assert bool(response.text) is (method != "HEAD")


@pytest.mark.hybrid_only
def test_many_slow_scrapers_keep_no_other_from_its_answer(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    proxy = start_proxy(start_server(), *option)
    slow = [connect(address) for _ in range(4 * http_answers.MOST_CONNECTIONS)]
    for sock in slow:
        # None of them ever comes to its end.
        sock.sendall(b"GET /metrics HTTP/1.0\r\n")
    assert is_within(AT_ONCE, lambda: seconds_of_a_scrape(address))
    (exporter,) = exporters(proxy)
    assert len(sockets_of(exporter)) <= http_answers.MOST_CONNECTIONS + 1
    for sock in slow:
        sock.close()


def seconds_of_a_scrape(address: Address) -> float:
    began = time.monotonic()
    scrape(address)
    return time.monotonic() - began


@pytest.mark.hybrid_only
def test_a_request_that_is_too_long_is_refused_and_not_kept(
    start_proxy: StartProxy, start_server: StartServer, address: Path, option: Tuple[str, str]
) -> None:
    start_proxy(start_server(), *option)
    with connect(address) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\nX: " + b"x" * http_answers.LARGEST_REQUEST)
        assert read_exactly(client, 12) == b"HTTP/1.0 431"
    assert get(address, "/healthz").status == 200


# What is wrong


@pytest.mark.hybrid_only
def test_without_the_extra_a_line_says_what_to_install() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, "--metrics", "9550", "8000", "kms.example", "443"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=20 * SLOWNESS,
        check=False,
    )
    assert ended.returncode == os.EX_USAGE
    assert ended.stderr.count("\n") == 1
    assert "pip install 'vsock-proxy[metrics]'" in ended.stderr


@pytest.mark.hybrid_only
def test_an_extra_that_is_broken_is_a_line_now_and_then_and_keeps_nobody_from_being_served(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path, option: Tuple[str, str]
) -> None:
    package = tmp_path / "broken" / "prometheus_client"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no such part')\n")
    proxy = start_proxy(
        start_server(), *option, environment={**os.environ, "PYTHONPATH": str(package.parent)}
    )
    line = "error metrics: cannot serve metrics: no such part; install vsock-proxy.metrics. anew$"
    proxy.log.wait_for(line)
    proxy.log.wait_for(f"warning master: metrics ended, exit code {os.EX_UNAVAILABLE}")
    one_connection(proxy, proxy.transport.port)
    proxy.log.wait_for("ended: 1 bytes up")


@pytest.mark.hybrid_only
def test_an_address_that_is_taken_ends_the_start_and_leaves_nothing_behind(
    transport: Transport, tmp_path: Path
) -> None:
    config = tmp_path / "allowlist.yaml"
    config.write_text("allowlist: [{address: 127.0.0.1, port: 443}]\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        ended = run(
            *("--config", str(config)),
            *transport.options(),
            *("--metrics", f"{host}:{port}"),
            *("8000", "127.0.0.1", "443"),
        )
    assert ended.returncode == os.EX_UNAVAILABLE
    assert f"cannot listen on TCP {host}:{port}: Address already in use" in ended.stderr
    assert list(tmp_path.iterdir()) == [config]
