"""What is under test and what is around it: the proxy, its file, the endpoint, the network."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import List, Optional

from tests.soak.endpoint import Endpoint
from tests.soak.tally import Tally
from tests.support import board
from tests.support.dns import NameServer
from tests.support.json_log import JSON
from tests.support.namespaces import Namespace
from tests.support.program import Proxy
from tests.support.servers import Server
from tests.support.timing import wait_until
from tests.support.transports import CLIENT_TIMEOUT, Hybrid

NAME, HERE, THERE = "endpoint.test", "127.0.0.1", "127.0.0.3"
WORKERS = 8
# Shorter than what is slow lasts, and longer than any silence of the clients and of the endpoint.
IDLE_TIMEOUT = 4


class World:
    """A proxy that serves; network is None where a namespace cannot be made."""

    def __init__(self, folder: Path, network: Optional[Namespace], tally: Tally) -> None:
        self.folder = folder
        self.network = network
        self.dns: Optional[NameServer] = None
        self._endpoint = Endpoint(tally)
        self._transport = Hybrid(folder)
        # Where the proxy serves metrics.
        self.metrics = folder / "metrics"
        self._server = self._make_server(0)
        self.port = self._server.port
        self.proxy = self._start()

    def connect(self, name: Optional[str] = None) -> socket.socket:
        """A client; bound to a name if one is given, '' being one of the kernel's choice."""
        if name is None:
            return self.proxy.connect()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(CLIENT_TIMEOUT)
        client.bind(name)
        client.connect(str(self._transport.path))
        return client

    def take_endpoint_away(self) -> None:
        """Close the endpoint and all of its connections."""
        self._server.close()

    def bring_endpoint_back(self) -> None:
        """Have it listen again on the same port, once that is free."""
        self._server = wait_until(self._try_server, "the endpoint's port is free")

    def write_allowlist(self) -> None:
        """Put the good allowlist into its place, whatever is there."""
        good = self.folder / "good.yaml"
        good.write_text(self._good)
        os.replace(good, self.allowlist)

    def wait_until_idle(self) -> None:
        """Wait until all workers are there and idle, as the scoreboard says."""
        wait_until(
            lambda: [row.state for row in board.ask(self.proxy)] == ["idle"] * WORKERS,
            "all workers are idle",
            30,
        )

    def close(self) -> None:
        """End everything."""
        self.proxy.end()
        self._server.close()
        if self.dns:
            self.dns.close()

    def _start(self) -> Proxy:
        host = HERE
        wrapper: List[str] = []
        if self.network:
            self.dns = self.network.call(NameServer)
            self.dns.set(NAME, HERE)
            host, wrapper = NAME, self.network.wrapper
        self.allowlist = self.folder / "allowlist.yaml"
        self._good = f"allowlist:\n- {{address: {host}, port: {self.port}}}\n"
        self.write_allowlist()
        proxy = Proxy(
            self._transport,
            [
                *("-w", str(WORKERS), "--config", str(self.allowlist)),
                *("--resolve-interval", "0.2", "--connect-timeout", "5"),
                *("--idle-timeout", str(IDLE_TIMEOUT)),
                *("--metrics", f"unix:{self.metrics}", *JSON),
                *(*self._transport.options(), str(self._transport.port), host, str(self.port)),
            ],
            wrapper=wrapper,
        )
        proxy.wait_ready()
        return proxy

    def _try_server(self) -> Optional[Server]:
        try:
            return self._make_server(self.port)
        except OSError:
            return None

    def _make_server(self, port: int) -> Server:
        def make() -> Server:
            return Server(self._endpoint.serve, HERE, port)

        return self.network.call(make) if self.network else make()
