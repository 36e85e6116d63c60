"""Several services in one file, and their clients."""

from __future__ import annotations

import json
import re
import select
import signal
import socket
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Tuple, Union

from tests.support.program import Proxy
from tests.support.servers import CHUNK, Handler, Server, exchange, read_exactly
from tests.support.systemd import NotifySocket
from tests.support.timing import wait_until

Endpoint = Union[Server, Tuple[str, int]]
Service = Dict[str, object]
READ_AGAIN = r"info master: .* read again"
# The title of the process that reads the file.
READER = "vsock-proxy: reload"
NOTHING_CHANGES = r"error master: .* as (it was|they were)$"


def service(listen: int, endpoint: Endpoint, **keys: object) -> Service:
    """An entry of the file."""
    host, port = (endpoint.host, endpoint.port) if isinstance(endpoint, Server) else endpoint
    return {"listen": listen, "address": host, "port": port, **keys}


class ServicesFile:
    """The file that the proxy reads, and the socket by which it says that a reload is over.

    The log does not say that: it has a line once the file is read, and none once all is served.
    """

    def __init__(self, path: Path, systemd: NotifySocket) -> None:
        self.path = path
        self.systemd = systemd

    def write(
        self, services: Iterable[Service], permitted: Optional[List[Tuple[str, int]]] = None
    ) -> None:
        """Write the file again. By default the allowlist has all endpoints of the services."""
        entries = list(services)
        if permitted is None:
            permitted = [(str(each["address"]), int(str(each["port"]))) for each in entries]
        allowed = [{"address": host, "port": port} for host, port in permitted]
        new = self.path.with_suffix(".new")
        new.write_text(_yaml("allowlist", allowed) + _yaml("services", entries))
        # At once, as a reload may be under way.
        new.rename(self.path)

    def reload(self, proxy: Proxy, *services: Service) -> None:
        """Write the file again, if there are services, and let the proxy read it.

        Returns once the file is in force.
        """
        if services:
            self.write(services)
        read = len(proxy.log.matching(READ_AGAIN))
        self._reload(proxy)
        assert len(proxy.log.wait_for(READ_AGAIN, count=read + 1)) == read + 1

    def reload_in_vain(self, proxy: Proxy) -> str:
        """Let the proxy read what it cannot put into force; returns its reason."""
        read = len(proxy.log.matching(READ_AGAIN))
        refused = len(proxy.log.matching(NOTHING_CHANGES))
        self._reload(proxy)
        assert len(proxy.log.matching(READ_AGAIN)) == read
        return proxy.log.wait_for(NOTHING_CHANGES, count=refused + 1)[-1]

    def _reload(self, proxy: Proxy) -> None:
        proxy.send(signal.SIGHUP)
        self.systemd.wait_for("^RELOADING=1\n")
        self.systemd.wait_for("^READY=1$")


def letter(name: bytes) -> Handler:
    """An endpoint that answers each byte with its own letter, so that a client knows it."""

    def answer(connection: socket.socket) -> None:
        with connection:
            while True:
                data = connection.recv(CHUNK)
                if not data:
                    return
                connection.sendall(name * len(data))

    return answer


def say(client: socket.socket) -> bytes:
    """The letter of the endpoint that a client is connected to."""
    client.sendall(b"?")
    return read_exactly(client, 1)


def letter_at(proxy: Proxy, port: int) -> bytes:
    """The letter of the endpoint that new clients of a port reach."""
    with proxy.connect(port) as client:
        return say(client)


def echo_once(proxy: Proxy, port: int, data: bytes = b"x") -> None:
    """A short connection to an endpoint that echoes."""
    with proxy.connect(port) as client:
        assert exchange(client, data) == data


def nothing_came(client: socket.socket) -> bool:
    """Whether neither a byte nor an end has come."""
    return not select.select([client], [], [], 0)[0]


def pool_of(proxy: Proxy, port: int) -> List[int]:
    """The pids of the workers that serve one service alone."""
    return sorted(proxy.workers(f"worker {port}/"))


def common_pool(proxy: Proxy) -> List[int]:
    """The pids of the workers that services share."""
    own = set(proxy.workers("/"))
    return sorted(pid for pid in proxy.workers() if pid not in own)


def all_idle(proxy: Proxy, count: int) -> List[int]:
    """The pids of all workers, once this number are there and all are idle."""
    return sorted(
        wait_until(
            lambda: (
                proxy.workers()
                if len(proxy.workers("idle")) == len(proxy.workers()) == count
                else None
            ),
            f"{count} workers, all of them idle",
        )
    )


def names(line: str, port: int) -> bool:
    """Whether a line says which service it is about."""
    return re.search(rf"(?<!\d){port}(?!\d)", line) is not None


def _yaml(key: str, entries: List[Service]) -> str:
    # A mapping in JSON is one in YAML.
    return f"{key}:\n" + "".join(f"- {json.dumps(entry)}\n" for entry in entries)
