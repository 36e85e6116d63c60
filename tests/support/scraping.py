"""Asking a proxy for its metrics, as Prometheus does, and for its health, as a probe does."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, FrozenSet, List, Tuple, Union

from prometheus_client.parser import text_string_to_metric_families

from tests.support import processes
from tests.support.program import Proxy
from tests.support.timing import SLOWNESS, wait_until
from tests.support.transports import connected

# A Unix socket, or an address and a port.
Address = Union[Path, Tuple[str, int]]
Labels = FrozenSet[Tuple[str, str]]
TIMEOUT = 10.0
# The title of the process that serves metrics.
EXPORTER = "vsock-proxy: metrics"

CONNECTIONS = "vsock_proxy_connections_total"
BYTES = "vsock_proxy_bytes_total"
WORKERS = "vsock_proxy_workers"
RESPAWNS = "vsock_proxy_respawns_total"
DURATION = "vsock_proxy_connection_duration_seconds"
CONNECT = "vsock_proxy_connect_duration_seconds"


@dataclass(frozen=True)
class Response:
    status: int
    kind: str
    text: str


class Metrics:
    """The series of one scrape."""

    def __init__(self, text: str) -> None:
        self._values: Dict[Tuple[str, Labels], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: object) -> float:
        """The value of the series with exactly these labels."""
        return self._values[name, _labels(labels)]

    def sum(self, name: str, **labels: object) -> float:
        """The sum of all series with these labels, whatever others they have."""
        asked = _labels(labels)
        return sum(
            value for (of, had), value in self._values.items() if of == name and asked <= had
        )

    def has(self, name: str, **labels: object) -> bool:
        return (name, _labels(labels)) in self._values

    def totals(self) -> Dict[Tuple[str, Labels], float]:
        """Everything that may never go back."""
        endings = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self._values.items() if key[0].endswith(endings)}


def _labels(labels: Dict[str, object]) -> Labels:
    return frozenset((name, str(value)) for name, value in labels.items())


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: Address) -> None:
        super().__init__("localhost", timeout=TIMEOUT * SLOWNESS)
        self._address = address

    def connect(self) -> None:
        self.sock = connect(self._address)


def connect(address: Address) -> socket.socket:
    """A client's connection to where metrics are served."""
    if isinstance(address, Path):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(TIMEOUT * SLOWNESS)
        return connected(sock, str(address))
    return socket.create_connection(address, timeout=TIMEOUT * SLOWNESS)


def get(address: Address, path: str, accept: str = "text/plain", method: str = "GET") -> Response:
    """What is answered. Raises OSError or HTTPException."""
    connection = _Connection(address)
    try:
        connection.request(method, path, headers={"Accept": accept})
        response = connection.getresponse()
        return Response(response.status, response.headers["Content-Type"], response.read().decode())
    finally:
        connection.close()


def scrape(address: Address) -> Metrics:
    response = get(address, "/metrics")
    assert response.status == 200, response
    return Metrics(response.text)


def wait_for_value(address: Address, value: float, name: str, **labels: object) -> None:
    wait_until(lambda: scrape(address).sum(name, **labels) == value, f"{name} {labels} is {value}")


def wait_for_line(address: Address, path: str, status: int, beginning: str) -> str:
    """Wait until the line of a probe begins like this; returns it."""

    def line() -> str:
        response = get(address, path)
        fits = response.status == status and response.text.startswith(beginning)
        return response.text if fits else ""

    return wait_until(line, f"{path} says {status} {beginning!r}")


def exporters(proxy: Proxy) -> List[int]:
    """The pids of the processes that serve metrics."""
    return [pid for pid in proxy.children() if processes.title(pid) == EXPORTER]
