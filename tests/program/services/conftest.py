"""What a test of several services needs: ports, endpoints, the file and the proxy that reads it."""

from __future__ import annotations

from typing import List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.namespaces import Namespace
from tests.support.program import Proxy, Transport
from tests.support.services import Service, ServicesFile

either_pool = pytest.mark.parametrize(
    "own", [False, True], ids=["the common pool", "a pool of its own"]
)


class Scene:
    """The means of such a test."""

    def __init__(
        self,
        start_services: StartProxy,
        start_server: StartServer,
        transport: Transport,
        file: ServicesFile,
    ) -> None:
        self.start = start_services
        self.server = start_server
        self.transport = transport
        self.file = file

    def ports(self, count: int) -> List[int]:
        """Ports on which services can listen."""
        return self.transport.ports(count)

    def reload(self, proxy: Proxy, *services: Service) -> None:
        """Write the file again, if there is something to write, and let the proxy read it."""
        self.file.reload(proxy, *services)


@pytest.fixture
def scene(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> Scene:
    return Scene(start_services, start_server, transport, services_file)


@pytest.fixture
def inside(
    network: Namespace,
    start_services: StartProxy,
    start_inside: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> Scene:
    """The same means inside a network of its own, for services whose endpoints have names."""

    def start(*services: Service, **process: object) -> Proxy:
        return start_services(*services, wrapper=network.wrapper, **process)

    return Scene(start, start_inside, transport, services_file)
