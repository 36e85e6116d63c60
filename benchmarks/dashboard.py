"""Draw docs/dashboard.svg: what the dashboard shows of a proxy under load.

    python3 -m benchmarks.dashboard        takes four minutes

A real Prometheus (Debian: `prometheus`) scrapes a real proxy, which serves four endpoints on
hybrid sockets: one that answers at once; one that takes its time; one for which there are too few
workers, in the second minute; and one that is not there in the third, when a worker is killed too.
Then each query of the dashboard is put to Prometheus, as Grafana does. The interpreter needs what
the proxy needs, with the extra `metrics`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from os import kill
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

from . import panels, processes
from .panels import Series, Span

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "etc" / "grafana" / "vsock-proxy.json"
HOST = "127.0.0.1"
SCRAPE_SECONDS = 1
STEP_SECONDS = 2
# In what Grafana fills in.
CHOSEN = {
    "$__rate_interval": "10s",
    "$job": "vsock-proxy",
    "$instance": ".*",
    "$service": ".*",
}
MINUTE = 60.0
START_TIMEOUT = 30.0
FAST, SLOW, BUSY, GONE = 8000, 8001, 8002, 8003
# Of their endpoints, in seconds.
DELAYS = {FAST: 0.0, SLOW: 0.04, BUSY: 0.4, GONE: 0.0}
CHUNK = 1 << 16


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minute", type=float, default=MINUTE, help="seconds that a minute has")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "dashboard.svg")
    arguments = parser.parse_args()
    dashboard = json.loads(DASHBOARD.read_text())
    with tempfile.TemporaryDirectory(prefix="dashboard-") as folder, scene(Path(folder)) as acting:
        prometheus, play = acting
        span = play(arguments.minute)
        found = [(panel, series_of(prometheus, panel, span)) for panel in dashboard["panels"]]
    arguments.out.write_text(panels.draw(found, span, dashboard["title"]))
    return 0


def series_of(prometheus: Prometheus, panel: Dict[str, Any], span: Span) -> List[Series]:
    """What the queries of a panel have as their answer."""
    return [
        Series(
            panels.legend_of(target["legendFormat"], one["metric"]),
            [(when, float(value)) for when, value in one["values"] if math.isfinite(float(value))],
        )
        for target in panel["targets"]
        for one in prometheus.ask(_filled_in(target["expr"]), span)
    ]


def _filled_in(query: str) -> str:
    for name, value in CHOSEN.items():
        query = query.replace(name, value)
    return query


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    address: str

    def ask(self, query: str, span: Span) -> List[Any]:
        """What a query was in that time."""
        words = {"query": query, "start": span.start, "end": span.end, "step": STEP_SECONDS}
        url = f"http://{self.address}/api/v1/query_range?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(url, timeout=START_TIMEOUT) as answer:
            result: List[Any] = json.load(answer)["data"]["result"]
        return result

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return


Play = Callable[[float], Span]


@contextmanager
def scene(folder: Path) -> Iterator[Tuple[Prometheus, Play]]:
    """Servers, the proxy and Prometheus, and what makes them work for a time."""
    with ExitStack() as stack:
        servers = {port: stack.enter_context(Server(delay)) for port, delay in DELAYS.items()}
        metrics, web = _free_address(), _free_address()
        proxy = stack.enter_context(_program(_proxy(folder, servers, metrics)))
        stack.enter_context(_program(_prometheus(folder, metrics, web)))
        prometheus = Prometheus(web)
        prometheus.await_ready()
        yield prometheus, lambda minute: _play(folder, servers, proxy.pid, minute)


def _play(folder: Path, servers: Dict[int, Server], proxy: int, minute: float) -> Span:
    over = threading.Event()
    rush = threading.Event()
    always = threading.Event()
    always.set()

    def clients(
        port: int, pause: Callable[[], float], size: int, at_work: threading.Event = always
    ) -> Clients:
        return Clients(f"{folder / 'v.sock'}_{port}", pause, size, at_work, over)

    everyone = [
        # In waves, for the eye.
        *[clients(FAST, lambda: 0.08 + 0.04 * math.sin(time.time() / 9), 5000)] * 2,
        *[clients(SLOW, lambda: random.expovariate(12), 10_000)] * 2,
        clients(BUSY, lambda: random.expovariate(1), 1000),
        *[clients(BUSY, lambda: 0.0, 1000, at_work=rush)] * 4,
        clients(GONE, lambda: random.expovariate(5), 100),
    ]
    began = time.time()
    threads = [each.start() for each in everyone]
    time.sleep(minute)
    rush.set()
    time.sleep(minute)
    rush.clear()
    servers[GONE].close()
    kill(processes.workers(proxy)[0], signal.SIGKILL)
    time.sleep(minute)
    servers[GONE].listen()
    time.sleep(minute)
    ended = time.time()
    over.set()
    rush.set()
    for thread in threads:
        thread.join()
    return Span(began, ended)


class Server:
    """Echoes what it gets, after a time, until the client sends no more."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self.port = 0
        self.listen()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(self) -> None:
        self._sock = socket.create_server((HOST, self.port))
        self.port = self._sock.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._sock,), daemon=True).start()

    def close(self) -> None:
        # Closing alone would not wake who accepts.
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            while True:
                data = client.recv(CHUNK)
                if not data:
                    return
                time.sleep(random.uniform(0.5, 1.5) * self._delay)
                client.sendall(data)


@dataclass(frozen=True)
class Clients:
    """What the clients of a service do: pause, then send a given number of bytes and get them back.

    at_work: as long as it is set; all end once `over` is.
    """

    path: str
    pause: Callable[[], float]
    size: int
    at_work: threading.Event
    over: threading.Event

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            self.at_work.wait()
            if self.over.wait(self.pause()):
                return
            # Its endpoint may not be there.
            with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.connect(self.path)
                client.sendall(bytes(self.size))
                left = self.size
                while left:
                    got = len(client.recv(left))
                    left = left - got if got else 0


def _proxy(folder: Path, servers: Dict[int, Server], metrics: str) -> List[str]:
    endpoints = [{"address": "localhost", "port": server.port} for server in servers.values()]
    services = [
        {**endpoint, "listen": listen, "workers": 2 if listen == BUSY else 4}
        for listen, endpoint in zip(servers, endpoints)
    ]
    config = folder / "vsock-proxy.yaml"
    # JSON is YAML too.
    config.write_text(json.dumps({"allowlist": endpoints, "services": services}))
    options = ["--config", str(config), "--uds-path", str(folder / "v.sock"), "--metrics", metrics]
    return [sys.executable, "-m", "vsock_proxy", "-4", "--log-level", "error", *options]


def _prometheus(folder: Path, metrics: str, web: str) -> List[str]:
    target = {"targets": [metrics], "labels": {"instance": "host"}}
    settings = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s"},
        "scrape_configs": [{"job_name": "vsock-proxy", "static_configs": [target]}],
    }
    config = folder / "prometheus.yml"
    config.write_text(json.dumps(settings))
    return [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={web}",
        "--log.level=error",
    ]


def _free_address() -> str:
    with socket.create_server((HOST, 0)) as sock:
        return f"{HOST}:{sock.getsockname()[1]}"


@contextmanager
def _program(command: List[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
