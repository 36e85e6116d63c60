"""What a probe is told of a running proxy."""

from __future__ import annotations

import signal

import pytest

from tests.program.metrics.conftest import MetricsScene
from tests.support import processes
from tests.support.scraping import get, wait_for_line
from tests.support.services import echo_once, service
from tests.support.timing import wait_until


@pytest.mark.hybrid_only
def test_it_is_not_healthy_while_the_master_does_not_answer(scene: MetricsScene) -> None:
    proxy = scene.start_one()
    wait_for_line(scene.metrics, "/healthz", 200, "healthy: 1 service\n")
    processes.stop(proxy.pid)
    wait_for_line(scene.metrics, "/healthz", 503, "not healthy: the master does not answer\n")
    proxy.send(signal.SIGCONT)
    wait_for_line(scene.metrics, "/healthz", 200, "healthy: 1 service\n")


def test_it_is_ready_unless_the_last_connect_of_a_service_has_failed(scene: MetricsScene) -> None:
    (port,) = scene.ports(1)
    server = scene.server()
    proxy = scene.start(service(port, server))
    wait_for_line(scene.metrics, "/readyz", 200, "ready: 1 service\n")
    server.close()
    with proxy.connect(port):
        proxy.log.wait_for("Connection refused")
    wait_for_line(
        scene.metrics, "/readyz", 503, f"not ready: the last connect failed, of {port} to "
    )
    scene.server(port=server.port)
    echo_once(proxy, port)
    wait_for_line(scene.metrics, "/readyz", 200, "ready: 1 service\n")


def test_a_reload_forgets_failed_connects_only_of_other_endpoints(scene: MetricsScene) -> None:
    port, other = scene.ports(2)
    server, gone = scene.server(), scene.server()
    gone.close()
    proxy = scene.start(service(port, gone))
    workers = set(proxy.workers())
    with proxy.connect(port):
        proxy.log.wait_for("Connection refused")
    failed = f"not ready: the last connect failed, of {port} to "
    wait_for_line(scene.metrics, "/readyz", 503, failed)

    # Another pool takes the place of the one that knew.
    scene.reload(proxy, service(port, gone), service(other, server))
    wait_for_line(scene.metrics, "/readyz", 503, failed)
    wait_until(lambda: not workers & set(proxy.workers()), "the old workers are gone")
    assert get(scene.metrics, "/readyz").text.startswith(failed)

    scene.reload(proxy, service(port, server), service(other, server))
    wait_for_line(scene.metrics, "/readyz", 200, "ready: 2 services\n")
