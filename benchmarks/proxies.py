"""The proxies under test: how each is started in front of a backend, and ended afterwards.

Each runs in a control group of its own, so that its CPU time can be told from all else. A proxy
is given as a command for where it listens and where the backend does; nothing else differs between
them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, ContextManager, Dict, Iterator, List, Optional, Tuple

from . import network, processes
from .accounting import Accounting, Group
from .places import LOOPBACK, TCP, UNIX, VMADDR_CID_LOCAL, VSOCK, Place

OURS = "vsock-proxy"
OURS_LOGGING = "vsock-proxy, default log level"
BASELINE = "vsock-proxy, baseline"
SOCAT = "socat"
PROXYD = "systemd-socket-proxyd"
PROXYD_PLAIN = "systemd-socket-proxyd, no VMM"

# An endpoint by name; without any server it is an address of this machine.
NAME = "localhost"
START_TIMEOUT = 60.0
END_TIMEOUT = 15.0
POLL_SECONDS = 0.0005
STABLE_SECONDS = 0.3
PROXYD_PLACES = ("/lib/systemd/systemd-socket-proxyd", "/usr/lib/systemd/systemd-socket-proxyd")


class StartFailed(Exception):
    """A proxy ended or did not accept in time; says what it wrote."""


@dataclass(frozen=True)
class Site:
    """What all proxies of one benchmark share: folder for files, interpreter, where they listen."""

    listens: str
    folder: Path
    python: str
    source: Path
    accounts: Accounting
    ports: Iterator[int]

    def new_place(self, count: int = 1) -> Place:
        ports = [next(self.ports) for _ in range(count)]
        return Place(self.listens, ports[0], self.folder / "s", count)


def new_site(listens: str, folder: Path, python: str, source: Path, accounts: Accounting) -> Site:
    ports = _free_ports() if listens == TCP else itertools.count(20000 + os.getpid() % 20000)
    return Site(listens, folder, python, source, accounts, ports)


def _free_ports() -> Iterator[int]:
    """TCP ports on which nobody listens, nor does a connection have them (see network.py)."""
    for port in itertools.count(network.RESERVED.start):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((LOOPBACK, port))
            except OSError:
                continue
        yield port


Command = Callable[[Site, Place, Place], List[str]]


@dataclass(frozen=True)
class Proxy:
    """A name for the tables, the command, the checkout if not this one, the loads if not all.

    services: on how many ports it listens.
    asks: whether a VMM is asked for its guest by the client, as the proxy does not.
    meanwhile: what goes on while it has a load.
    """

    name: str
    command: Command
    source: Optional[Path] = None
    loads: Optional[Tuple[str, ...]] = None
    services: int = 1
    asks: bool = False
    meanwhile: Callable[[Running], ContextManager[None]] = lambda _: nullcontext()


@dataclass(frozen=True)
class Running:
    """A proxy that has been started and may not accept yet."""

    proxy: Proxy
    site: Site
    place: Place
    process: subprocess.Popen[bytes]
    group: Group
    started: float
    log: Path

    @property
    def name(self) -> str:
        return self.proxy.name

    @property
    def target(self) -> str:
        """As the load generator wants it."""
        return f"ask:{self.place.target}" if self.proxy.asks else self.place.target

    def await_connection(self, port: Optional[int] = None) -> socket.socket:
        """The first connection that succeeds, to the first port if none is named."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return self.place.connect(port)
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    said = self.log.read_text(errors="replace").strip().split("\n")[-1]
                    raise StartFailed(
                        f"{self.name} does not accept: {error.strerror}; it said: {said}"
                    ) from None
            time.sleep(POLL_SECONDS)

    def await_ready(self) -> None:
        """Accepting, and done with starting processes."""
        self.await_connection().close()
        deadline = time.monotonic() + START_TIMEOUT
        count, since = 0, time.monotonic()
        while time.monotonic() < min(deadline, since + STABLE_SECONDS):
            time.sleep(STABLE_SECONDS / 10)
            now = len(processes.tree(self.process.pid))
            if now != count:
                count, since = now, time.monotonic()


def ours(
    workers: int = 4,
    level: str = "warning",
    name: str = OURS,
    source: Optional[Path] = None,
    loads: Optional[Tuple[str, ...]] = None,
    host: str = "127.0.0.1",
    metrics: bool = False,
) -> Proxy:
    """
    host: a TCP endpoint as the command line has it; it must be this machine.
    metrics: whether they are served, at metrics_path().
    """

    def command(site: Site, place: Place, backend: Place) -> List[str]:
        address = _endpoint(backend, host)
        config = site.folder / f"allowlist-{host}-{backend.port}.yaml"
        # Another process may be reading it.
        if not config.exists():
            config.write_text(f"allowlist:\n- {{address: '{address}', port: {backend.port}}}\n")
        more = ["-4"] if backend.kind == TCP else []
        if metrics:
            more += ["--metrics", f"unix:{metrics_path(site, place)}"]
        endpoint = [str(place.port), address, str(backend.port)]
        return [*_program(site, place, config, workers, level), *more, *endpoint]

    return Proxy(name, command, source, loads)


def metrics_path(site: Site, place: Place) -> Path:
    return site.folder / f"metrics-{place.port}"


def _endpoint(backend: Place, host: str) -> str:
    """What this proxy calls it; behind a Unix socket it takes a VMM to be, which it asks for it."""
    return {
        TCP: host,
        UNIX: f"unix:{backend.file}",
        VSOCK: f"vsock:{VMADDR_CID_LOCAL}",
    }[backend.kind]


def ours_for(services: int, workers: int, each: Optional[int], name: str) -> Proxy:
    """One process for many services: each with workers of its own, or `workers` for all."""

    def command(site: Site, place: Place, backend: Place) -> List[str]:
        write_services(site, place, dict.fromkeys(place.ports, backend.port), each)
        program = _program(site, place, services_file(site, place), workers, "warning")
        return [*program, "-4"]

    return Proxy(name, command, services=services)


def services_file(site: Site, place: Place) -> Path:
    return site.folder / f"services-{place.port}.yaml"


def write_services(site: Site, place: Place, backends: Dict[int, int], each: Optional[int]) -> None:
    """Write the file of the services: the backend's port for each port that is listened on."""
    ports = sorted({*backends.values()})
    allowed = [f"- {{address: {NAME}, port: {port}}}\n" for port in ports]
    own = "" if each is None else f", workers: {each}"
    services = [
        f"- {{listen: {listen}, address: {_spelling(number)}, port: {port}{own}}}\n"
        for number, (listen, port) in enumerate(backends.items())
    ]
    text = "".join(["allowlist:\n", *allowed, "services:\n", *services])
    new = site.folder / "services.new"
    new.write_text(text)
    # At once, lest it is read when a part of it is there.
    new.rename(services_file(site, place))


def _spelling(number: int) -> str:
    """The name, in small and capital letters by the bits of a number.

    To /etc/hosts that is one name, but the proxy looks each up by itself, as it does others.
    """
    return "".join(
        letter.upper() if number >> place & 1 else letter for place, letter in enumerate(NAME)
    )


def _program(site: Site, place: Place, config: Path, workers: int, level: str) -> List[str]:
    where = {
        TCP: ["--listen-tcp", LOOPBACK],
        UNIX: ["--uds-path", str(place.path)],
        VSOCK: [],
    }[place.kind]
    options = ["--config", str(config), "-w", str(workers), "--log-level", level, *where]
    return [site.python, "-m", "vsock_proxy", *options]


def socat(asks: bool = False) -> Proxy:
    def command(_: Site, place: Place, backend: Place) -> List[str]:
        listen = {
            TCP: f"TCP-LISTEN:{place.port},bind={LOOPBACK},reuseaddr,nodelay",
            UNIX: f"UNIX-LISTEN:{place.file}",
            VSOCK: f"VSOCK-LISTEN:{place.port}",
        }[place.kind]
        connect = {
            TCP: f"TCP:{LOOPBACK}:{backend.port},nodelay",
            UNIX: f"UNIX-CONNECT:{backend.file}",
            VSOCK: f"VSOCK-CONNECT:{VMADDR_CID_LOCAL}:{backend.port}",
        }[backend.kind]
        return ["socat", "-b", "65536", f"{listen},fork,backlog=4096", connect]

    return Proxy(SOCAT, command, asks=asks)


def proxyd(
    connections: int = 256,
    name: str = PROXYD,
    loads: Optional[Tuple[str, ...]] = None,
    asks: bool = False,
) -> Proxy:
    """It connects to TCP and Unix sockets."""

    def command(_: Site, place: Place, backend: Place) -> List[str]:
        listen = {
            TCP: f"{LOOPBACK}:{place.port}",
            UNIX: place.file,
            VSOCK: f"vsock::{place.port}",
        }[place.kind]
        endpoint = backend.file if backend.kind == UNIX else f"{LOOPBACK}:{backend.port}"
        program = [_proxyd_program(), f"--connections-max={connections}", endpoint]
        return ["systemd-socket-activate", "-l", listen, *program]

    return Proxy(name, command, loads=loads, asks=asks)


def missing_peers() -> Dict[str, str]:
    """The peers that cannot be run here, and the package that has them."""
    missing = {}
    if shutil.which("socat") is None:
        missing[SOCAT] = "socat"
    if shutil.which("systemd-socket-activate") is None or not os.path.exists(_proxyd_program()):
        missing[PROXYD] = "systemd"
    return missing


@contextmanager
def started(site: Site, proxy: Proxy, backend: Place) -> Iterator[Running]:
    """Start a proxy and end it, with whatever it has left behind."""
    place = site.new_place(proxy.services)
    log = site.folder / f"log-{place.port}"
    with site.accounts.group() as group, log.open("wb") as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            proxy.command(site, place, backend),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=proxy.source or site.source,  # where `python -m` looks first
            preexec_fn=group.enter,  # noqa: PLW1509 - there are no threads
        )
        try:
            yield Running(proxy, site, place, process, group, begun, log)
        finally:
            _end(process)
            for port in place.ports:
                Path(place.file_of(port)).unlink(missing_ok=True)


def _proxyd_program() -> str:
    return next(filter(os.path.exists, PROXYD_PLACES), PROXYD_PLACES[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
