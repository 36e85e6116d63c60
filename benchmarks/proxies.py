"""The proxies under test: how each is started in front of a backend, and ended afterwards.

Each runs in a control group of its own, so that its CPU time can be told from all else. A proxy
is given as a command for one listening place and one backend port; nothing else differs between
them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple, Union

import processes
from accounting import Accounting, Group

OURS = "vsock-proxy"
OURS_LOGGING = "vsock-proxy, default log level"
BASELINE = "vsock-proxy, baseline"
SOCAT = "socat"
PROXYD = "systemd-socket-proxyd"

# An endpoint by name; without any server it is an address of this machine.
NAME = "localhost"
VMADDR_CID_LOCAL = 1
START_TIMEOUT = 60.0
END_TIMEOUT = 15.0
POLL_SECONDS = 0.0005
STABLE_SECONDS = 0.3
PROXYD_PLACES = ("/lib/systemd/systemd-socket-proxyd", "/usr/lib/systemd/systemd-socket-proxyd")

Address = Union[str, Tuple[int, int]]


class StartFailed(Exception):
    """A proxy ended or did not accept in time; says what it wrote."""


@dataclass(frozen=True)
class Place:
    """Where a proxy listens: the Unix socket `path`_`port`; without a path, an AF_VSOCK port.

    count: the number of ports. `port` is the first, the others follow it.
    """

    port: int
    path: Optional[Path] = None
    count: int = 1

    @property
    def ports(self) -> range:
        return range(self.port, self.port + self.count)

    @property
    def target(self) -> str:
        """As the load generator wants it."""
        return ",".join(map(self._target, self.ports))

    def _target(self, port: int) -> str:
        if self.path is None:
            return f"vsock:{VMADDR_CID_LOCAL}:{port}"
        return f"unix:{self.path}_{port}"

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """A connection to one of the ports, the first if none is named."""
        family = socket.AF_VSOCK if self.path is None else socket.AF_UNIX
        address: Address = (VMADDR_CID_LOCAL, port or self.port)
        if self.path is not None:
            address = f"{self.path}_{port or self.port}"
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(START_TIMEOUT)
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock


@dataclass(frozen=True)
class Site:
    """What all proxies of one benchmark share: transport, folder for files, interpreter."""

    vsock: bool
    folder: Path
    python: str
    source: Path
    accounts: Accounting
    ports: Iterator[int]

    def new_place(self, count: int = 1) -> Place:
        ports = [next(self.ports) for _ in range(count)]
        return Place(ports[0], None if self.vsock else self.folder / "s", count)


def new_site(vsock: bool, folder: Path, python: str, source: Path, accounts: Accounting) -> Site:
    ports = itertools.count(20000 + os.getpid() % 20000)
    return Site(vsock, folder, python, source, accounts, ports)


Command = Callable[[Site, Place, int], List[str]]


@dataclass(frozen=True)
class Proxy:
    """A name for the tables, the command, the checkout if not this one, the loads if not all.

    services: on how many ports it listens.
    """

    name: str
    command: Command
    source: Optional[Path] = None
    loads: Optional[Tuple[str, ...]] = None
    services: int = 1


@dataclass(frozen=True)
class Running:
    """A proxy that has been started and may not accept yet."""

    proxy: Proxy
    place: Place
    process: subprocess.Popen[bytes]
    group: Group
    started: float
    log: Path

    @property
    def name(self) -> str:
        return self.proxy.name

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
) -> Proxy:
    """host: the endpoint as the command line has it; it must be this machine."""

    def command(site: Site, place: Place, backend_port: int) -> List[str]:
        config = site.folder / f"allowlist-{host}-{backend_port}.yaml"
        # Another process may be reading it.
        if not config.exists():
            config.write_text(f"allowlist:\n- {{address: {host}, port: {backend_port}}}\n")
        endpoint = [str(place.port), host, str(backend_port)]
        return [*_program(site, place, config, workers, level), *endpoint]

    return Proxy(name, command, source, loads)


def ours_for(services: int, workers: int, each: Optional[int], name: str) -> Proxy:
    """One process for many services: each with workers of its own, or `workers` for all."""

    def command(site: Site, place: Place, backend_port: int) -> List[str]:
        write_services(site, place, dict.fromkeys(place.ports, backend_port), each)
        return _program(site, place, services_file(site, place), workers, "warning")

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
    where = [] if place.path is None else ["--uds-path", str(place.path)]
    options = ["-4", "--config", str(config), "-w", str(workers), "--log-level", level, *where]
    return [site.python, "-m", "vsock_proxy", *options]


def socat() -> Proxy:
    def command(_: Site, place: Place, backend_port: int) -> List[str]:
        if place.path is None:
            listen = f"VSOCK-LISTEN:{place.port},fork,backlog=4096"
        else:
            listen = f"UNIX-LISTEN:{place.path}_{place.port},fork,backlog=4096"
        return ["socat", "-b", "65536", listen, f"TCP:127.0.0.1:{backend_port},nodelay"]

    return Proxy(SOCAT, command)


def proxyd(connections: int = 256) -> Proxy:
    def command(_: Site, place: Place, backend_port: int) -> List[str]:
        listen = f"vsock::{place.port}" if place.path is None else f"{place.path}_{place.port}"
        program = [
            _proxyd_program(),
            f"--connections-max={connections}",
            f"127.0.0.1:{backend_port}",
        ]
        return ["systemd-socket-activate", "-l", listen, *program]

    return Proxy(PROXYD, command)


def missing_peers() -> Dict[str, str]:
    """The peers that cannot be run here, and the package that has them."""
    missing = {}
    if shutil.which("socat") is None:
        missing[SOCAT] = "socat"
    if shutil.which("systemd-socket-activate") is None or not os.path.exists(_proxyd_program()):
        missing[PROXYD] = "systemd"
    return missing


@contextmanager
def started(site: Site, proxy: Proxy, backend_port: int) -> Iterator[Running]:
    """Start a proxy and end it, with whatever it has left behind."""
    place = site.new_place(proxy.services)
    log = site.folder / f"log-{place.port}"
    with site.accounts.group() as group, log.open("wb") as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            proxy.command(site, place, backend_port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=proxy.source or site.source,  # where `python -m` looks first
            preexec_fn=group.enter,  # noqa: PLW1509 - there are no threads
        )
        try:
            yield Running(proxy, place, process, group, begun, log)
        finally:
            _end(process)
            for port in place.ports:
                Path(f"{place.path}_{port}").unlink(missing_ok=True)


def _proxyd_program() -> str:
    return next(filter(os.path.exists, PROXYD_PLACES), PROXYD_PLACES[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
