"""What a probe is told of a running proxy."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.program import Transport
from tests.support.scraping import get, wait_for_line
from tests.support.services import ServicesFile, echo_once, service
from tests.support.timing import wait_until


@pytest.mark.hybrid_only
def test_it_is_not_healthy_while_the_master_does_not_answer(
    start_proxy: StartProxy,
    start_server: StartServer,
    metrics_path: Path,
    metrics_option: Tuple[str, str],
) -> None:
    proxy = start_proxy(start_server(), *metrics_option)
    wait_for_line(metrics_path, "/healthz", 200, "healthy: 1 service\n")
    proxy.send(signal.SIGSTOP)
    wait_for_line(metrics_path, "/healthz", 503, "not healthy: the master does not answer\n")
    proxy.send(signal.SIGCONT)
    wait_for_line(metrics_path, "/healthz", 200, "healthy: 1 service\n")


def test_it_is_ready_unless_the_last_connect_of_a_service_has_failed(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    metrics_path: Path,
    metrics_option: Tuple[str, str],
) -> None:
    (port,) = transport.ports(1)
    server = start_server()
    proxy = start_services(service(port, server), options=metrics_option)
    wait_for_line(metrics_path, "/readyz", 200, "ready: 1 service\n")
    server.close()
    with proxy.connect(port):
        proxy.log.wait_for("Connection refused")
    wait_for_line(
        metrics_path, "/readyz", 503, f"not ready: the last connect failed, of {port} to "
    )
    start_server(port=server.port)
    echo_once(proxy, port)
    wait_for_line(metrics_path, "/readyz", 200, "ready: 1 service\n")


def test_a_reload_forgets_failed_connects_only_of_other_endpoints(
    start_services: StartProxy,
    start_server: StartServer,
    services_file: ServicesFile,
    transport: Transport,
    metrics_path: Path,
    metrics_option: Tuple[str, str],
) -> None:
    port, other = transport.ports(2)
    server, gone = start_server(), start_server()
    gone.close()
    proxy = start_services(service(port, gone), options=metrics_option)
    workers = set(proxy.workers())
    with proxy.connect(port):
        proxy.log.wait_for("Connection refused")
    failed = f"not ready: the last connect failed, of {port} to "
    wait_for_line(metrics_path, "/readyz", 503, failed)

    # Another pool takes the place of the one that knew.
    services_file.reload(proxy, service(port, gone), service(other, server))
    wait_for_line(metrics_path, "/readyz", 503, failed)
    wait_until(lambda: not workers & set(proxy.workers()), "the old workers are gone")
    assert get(metrics_path, "/readyz").text.startswith(failed)

    services_file.reload(proxy, service(port, server), service(other, server))
    wait_for_line(metrics_path, "/readyz", 200, "ready: 2 services\n")
