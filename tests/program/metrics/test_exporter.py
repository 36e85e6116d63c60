"""The process that serves metrics: what it has and does, who asks it, and what is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics

from tests.conftest import StartProxy, StartServer
from tests.program.metrics.conftest import MetricsScene
from tests.support import processes, seccomp
from tests.support.program import PROJECT, Transport, run
from tests.support.scraping import (
    CONNECTIONS,
    DURATION,
    EXPORTER,
    WORKERS,
    Address,
    connect,
    exporters,
    get,
    scrape,
    wait_for_line,
    wait_for_value,
)
from tests.support.servers import exchange, read_exactly
from tests.support.services import echo_once, service
from tests.support.timing import AT_ONCE, SLOWNESS, is_within, wait_until
from vsock_proxy.observing import http_answers
from vsock_proxy.observing.exporter import NICENESS

# The most that there is (setpriority(2)).
NICEST = 19
WITHOUT_EXTRA = """
import sys
sys.modules["prometheus_client"] = None
from vsock_proxy.__main__ import main
sys.exit(main())
"""


# What the process has and does


def test_the_process_for_metrics_and_the_workers_share_no_listener(scene: MetricsScene) -> None:
    one, other = scene.ports(2)
    server = scene.server()
    proxy = scene.start(service(one, server), service(other, ("localhost", server.port)))
    scrape(scene.metrics)
    with proxy.connect(one) as client:
        assert exchange(client, b"x") == b"x"
        exporter = proxy.wait_for_child(EXPORTER)
        # That of the scrape is closed a moment after the answer.
        wait_until(lambda: len(sockets_of(exporter)) == 1, "it holds nothing but its listener")
        own = sockets_of(exporter)
        for worker in proxy.workers():
            assert not own & sockets_of(worker)
        resolver = proxy.wait_for_child("vsock-proxy: resolver")
        assert not own & sockets_of(resolver)


def sockets_of(pid: int) -> set[str]:
    # Except the one that is stderr, as every process has it.
    return {name for name in processes.file_names(pid) if name.startswith("socket:")}


@pytest.mark.hybrid_only
def test_the_process_for_metrics_makes_way_for_connections(scene: MetricsScene) -> None:
    proxy = scene.start_one()
    scrape(scene.metrics)
    exporter = proxy.wait_for_child(EXPORTER)
    expected = min(os.getpriority(os.PRIO_PROCESS, proxy.pid) + NICENESS, NICEST)
    assert os.getpriority(os.PRIO_PROCESS, exporter) == expected


@pytest.mark.hybrid_only
def test_metrics_are_served_in_a_sandbox_that_forbids_setpriority(scene: MetricsScene) -> None:
    # As the units of the packages do.
    if seccomp.why_not():
        pytest.skip(seccomp.why_not())
    sandbox = [sys.executable, "-m", "tests.support.seccomp", "setpriority", "EPERM"]
    proxy = scene.start_one(wrapper=sandbox)
    assert get(scene.metrics, "/healthz").status == 200
    assert proxy.log.matching(" metrics") == []


@pytest.mark.hybrid_only
def test_a_scrape_makes_no_line_in_the_log(scene: MetricsScene) -> None:
    proxy = scene.start_one("--log-level", "debug", ready=False)
    proxy.wait_ready()
    scrape(scene.metrics)
    with connect(scene.metrics) as odd:
        odd.sendall(b"\x00\xff\r\n\r\n")
        assert odd.recv(1024)
    get(scene.metrics, "/nowhere")
    echo_once(proxy, proxy.transport.port)
    proxy.log.wait_for("ended: 1 bytes up")
    assert proxy.log.matching(" metrics: ") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.hybrid_only
def test_a_signal_to_the_whole_group_does_not_end_the_process_for_metrics(
    scene: MetricsScene, number: signal.Signals
) -> None:
    proxy = scene.start_one()
    scrape(scene.metrics)
    exporter = proxy.wait_for_child(EXPORTER)
    os.kill(exporter, number)
    scrape(scene.metrics)
    assert exporters(proxy) == [exporter]


def test_metrics_are_served_until_the_last_connection_has_drained(scene: MetricsScene) -> None:
    proxy = scene.start_one()
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        proxy.send(signal.SIGTERM)
        wait_for_line(scene.metrics, "/readyz", 503, "not ready: draining")
        wait_for_line(scene.metrics, "/healthz", 200, "healthy: draining")
        wait_for_value(scene.metrics, 1, WORKERS, state="draining")
        assert exchange(client, b"y") == b"y"
    assert proxy.wait() == 0
    assert not scene.metrics.exists()


@pytest.mark.hybrid_only
def test_the_process_for_metrics_ends_with_the_master(scene: MetricsScene) -> None:
    proxy = scene.start_one()
    scrape(scene.metrics)
    exporter = proxy.wait_for_child(EXPORTER)
    proxy.send(signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(exporter), "it has ended")


# Who asks


@pytest.mark.hybrid_only
def test_metrics_are_in_openmetrics_when_that_is_asked_for(scene: MetricsScene) -> None:
    scene.start_one()
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    response = get(scene.metrics, "/metrics", asked)
    assert response.kind.startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")
    families = openmetrics.text_string_to_metric_families(response.text)  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"vsock_proxy_connections", "vsock_proxy_build", DURATION} <= names


@pytest.mark.hybrid_only
def test_metrics_are_by_the_conventions_of_prometheus(scene: MetricsScene) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    server = scene.server()
    scene.start_one(endpoint=("localhost", server.port))
    response = get(scene.metrics, "/metrics")
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
    scene: MetricsScene, method: str, path: str, status: int
) -> None:
    scene.start_one()
    response = get(scene.metrics, path, method=method)
    assert response.status == status
    assert bool(response.text) is (method != "HEAD")


@pytest.mark.hybrid_only
def test_many_slow_scrapers_keep_no_other_from_its_answer(scene: MetricsScene) -> None:
    proxy = scene.start_one()
    slow = [connect(scene.metrics) for _ in range(4 * http_answers.MOST_CONNECTIONS)]
    for sock in slow:
        # None of them ever comes to its end. One that others came after may have lost its place.
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(b"GET /metrics HTTP/1.0\r\n")
    assert is_within(AT_ONCE, lambda: seconds_of_a_scrape(scene.metrics))
    exporter = proxy.wait_for_child(EXPORTER)
    assert len(sockets_of(exporter)) <= http_answers.MOST_CONNECTIONS + 1
    for sock in slow:
        sock.close()


def seconds_of_a_scrape(address: Address) -> float:
    began = time.monotonic()
    scrape(address)
    return time.monotonic() - began


@pytest.mark.hybrid_only
def test_a_request_that_is_too_long_is_refused_and_not_kept(scene: MetricsScene) -> None:
    scene.start_one()
    with connect(scene.metrics) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\nX: " + b"x" * http_answers.LARGEST_REQUEST)
        assert read_exactly(client, 12) == b"HTTP/1.0 431"
    assert get(scene.metrics, "/healthz").status == 200


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
def test_clients_are_served_though_the_extra_for_metrics_is_broken(
    scene: MetricsScene, tmp_path: Path
) -> None:
    package = tmp_path / "broken" / "prometheus_client"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no such part')\n")
    proxy = scene.start_one(environment={**os.environ, "PYTHONPATH": str(package.parent)})
    line = "error metrics: cannot serve metrics: no such part; install vsock-proxy.metrics. again$"
    proxy.log.wait_for(line)
    proxy.log.wait_for(f"warning master: metrics ended, exit code {os.EX_UNAVAILABLE}")
    echo_once(proxy, proxy.transport.port)
    proxy.log.wait_for("ended: 1 bytes up")


@pytest.mark.hybrid_only
def test_a_taken_address_ends_the_start_and_leaves_nothing_behind(
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
