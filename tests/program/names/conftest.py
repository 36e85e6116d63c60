"""A network of its own for each test, with its own name server.

A test can say what a name is, that there is none, or nothing at all.
"""

from __future__ import annotations

from typing import Callable, Iterator, List

import pytest

from tests.conftest import StartProxy
from tests.support.dns import NameServer
from tests.support.named import NAME
from tests.support.namespaces import RESOLV_CONF, Namespace
from tests.support.program import Proxy


@pytest.fixture
def resolv_conf() -> str:
    return RESOLV_CONF


@pytest.fixture
def start_name_server(network: Namespace) -> Iterator[Callable[[], NameServer]]:
    name_servers: List[NameServer] = []

    def start() -> NameServer:
        name_servers.append(network.call(NameServer))
        return name_servers[-1]

    yield start
    for name_server in name_servers:
        name_server.close()


@pytest.fixture
def dns(start_name_server: Callable[[], NameServer]) -> NameServer:
    return start_name_server()


@pytest.fixture
def start_named(network: Namespace, start_proxy: StartProxy) -> StartProxy:
    """Starts the proxy inside the network, for the name and a port."""

    def start(port: int, *options: str, **process: object) -> Proxy:
        return start_proxy((NAME, port), *options, wrapper=network.wrapper, **process)

    return start
