"""A proxy that listens on TCP, at an address that the test says."""

from __future__ import annotations

import os
import random
import socket
from typing import Callable, List

import pytest

from tests.conftest import StartProxy
from tests.support.means import need_address
from tests.support.program import Proxy
from tests.support.timing import SLOWNESS
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

# RFC 5737: nobody has it.
DOCUMENTATION = "192.0.2.1"


@pytest.fixture
def port() -> int:
    """A port that is free on each address, and none that the kernel gives to clients."""
    while True:
        number = random.randrange(1 << 10, 1 << 15)
        try:
            socket.create_server(("", number)).close()
        except OSError:
            continue
        return number


@pytest.fixture
def listen(start_proxy: StartProxy) -> Callable[..., Proxy]:
    """Starts a proxy that listens at an address."""

    def start(endpoint: object, address: str, *options: str, **process: object) -> Proxy:
        need_address(address)
        return start_proxy(endpoint, "--listen-tcp", address, *options, **process)

    return start


@pytest.fixture
def transport(port: int) -> Anywhere:
    return Anywhere(port)


class Anywhere:
    """TCP at an address that the test says."""

    name = "tcp"

    def __init__(self, port: int) -> None:
        self.port = port

    def options(self) -> List[str]:
        """What the proxy is started with: nothing, the address is the test's."""
        return []


def connect(address: str, port: int) -> socket.socket:
    """A client."""
    return socket.create_connection((address, port), timeout=20 * SLOWNESS)


def is_refused(address: str, port: int) -> bool:
    try:
        connect(address, port).close()
    except ConnectionRefusedError:
        return True
    return False


def settings(address: str, port: int, family: int = socket.AF_UNSPEC) -> ServiceSettings:
    """A service that listens there."""
    options = ServiceOptions(family=socket.AddressFamily(family), listen_tcp=address)
    return ServiceSettings(port, Endpoint("192.0.2.1", 443), options)


def message(proxy: Proxy) -> str:
    """What a proxy says that cannot listen."""
    assert proxy.wait() == os.EX_UNAVAILABLE
    return proxy.log.only_line()
