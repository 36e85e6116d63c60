"""A network of its own for each test, with its own name server.

A test can say what a name is, that there is none, or nothing at all.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Callable, Iterator, List, Sequence, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.dns import NameServer
from tests.support.named import NAME
from tests.support.namespaces import RESOLV_CONF, Namespace
from tests.support.program import Proxy
from tests.support.servers import Server


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


class Scene:
    """The means of such a test. Everything that it starts is inside the network."""

    def __init__(
        self,
        network: Namespace,
        start_name_server: Callable[[], NameServer],
        start_inside: StartServer,
        start_proxy: StartProxy,
        write_allowlist: Callable[..., Path],
    ) -> None:
        self.network = network
        self.start_name_server = start_name_server
        self.server = start_inside
        self.write_allowlist = write_allowlist
        self._start_proxy = start_proxy

    def servers(self, first: str, *others: str) -> List[Server]:
        """A server at each of these addresses, all at the same port."""
        server = self.server(host=first)
        return [server, *(self.server(host=address, port=server.port) for address in others)]

    def start(
        self,
        port: int,
        *options: str,
        address: str = NAME,
        permitted: Sequence[Tuple[str, int]] = (),
        **process: object,
    ) -> Proxy:
        """Start the proxy for the name, unless the test says another address.

        permitted: what the allowlist has, if not this endpoint alone.
        """
        if permitted:
            process["config"] = self.write_allowlist(*permitted)
        return self._start_proxy((address, port), *options, wrapper=self.network.wrapper, **process)

    def reload(self, proxy: Proxy, *permitted: Tuple[str, int]) -> None:
        """Write the allowlist again, if there is one to write, and ask the proxy to read it."""
        if permitted:
            self.write_allowlist(*permitted)
        proxy.send(signal.SIGHUP)


@pytest.fixture
def scene(
    network: Namespace,
    start_name_server: Callable[[], NameServer],
    start_inside: StartServer,
    start_proxy: StartProxy,
    write_allowlist: Callable[..., Path],
) -> Scene:
    return Scene(network, start_name_server, start_inside, start_proxy, write_allowlist)


@pytest.fixture
def dns(scene: Scene) -> NameServer:
    """The name server of a test in which there is one from the start."""
    return scene.start_name_server()
