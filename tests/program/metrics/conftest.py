"""What a test of metrics needs: a proxy that serves them, its endpoints, and where to ask."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.program.services.conftest import Scene
from tests.support.program import Proxy, Transport
from tests.support.services import Endpoint, Service, ServicesFile


class MetricsScene(Scene):
    """The means of such a test. Each proxy that it starts serves metrics.

    start() is for the services of a file, start_one() for the one endpoint of a command line.
    """

    def __init__(
        self,
        start_services: StartProxy,
        start_one: StartProxy,
        start_server: StartServer,
        transport: Transport,
        file: ServicesFile,
        metrics: Path,
    ) -> None:
        super().__init__(start_services, start_server, transport, file)
        self.start_one = start_one
        self.metrics = metrics


@pytest.fixture
def start_one(
    start_proxy: StartProxy, start_server: StartServer, metrics_option: Tuple[str, str]
) -> StartProxy:
    """Starts the proxy with metrics, for one endpoint. By default that is a server that echoes."""

    def start(*options: str, endpoint: Optional[Endpoint] = None, **process: object) -> Proxy:
        return start_proxy(endpoint or start_server(), *metrics_option, *options, **process)

    return start


@pytest.fixture
def scene(
    start_services: StartProxy,
    start_one: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
    metrics_path: Path,
    metrics_option: Tuple[str, str],
) -> MetricsScene:
    def start(*services: Service, options: Sequence[str] = (), **process: object) -> Proxy:
        return start_services(*services, options=[*metrics_option, *options], **process)

    return MetricsScene(start, start_one, start_server, transport, services_file, metrics_path)
