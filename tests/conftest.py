"""Fixtures of the one suite that runs over each transport.

`--transport` says which: the hybrid socket works on any Linux machine, AF_VSOCK only where the test
may use it, which is a virtual machine that the suite starts itself (tests/vm). What is marked so
runs over TCP as well, beside the hybrid socket.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import pytest

from tests.support.dns import NameServer
from tests.support.means import need_address
from tests.support.metadata import Behaviour, MetadataService
from tests.support.namespaces import PATIENT_RESOLV_CONF, Namespace
from tests.support.program import Proxy, Transport
from tests.support.servers import Handler, Server, UnixServer, VsockServer, echo
from tests.support.services import Service, ServicesFile
from tests.support.systemd import NotifySocket
from tests.support.transports import Hybrid, Tcp, Vsock
from tests.support.vmm import Firecracker
from vsock_proxy.process.signals import HANDLED, IGNORED, Signals

ONLY_ON_HYBRID = "hybrid_only"
ONLY_ON_VSOCK = "vsock_only"
ON_TCP_TOO = "tcp_too"
TRANSPORTS: Dict[str, Callable[[Path], Transport]] = {"hybrid": Hybrid, "vsock": Vsock, "tcp": Tcp}
LONGEST_BASE = 50
StartProxy = Callable[..., Proxy]
StartServer = Callable[..., Server]
StartService = Callable[..., MetadataService]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        choices=tuple(TRANSPORTS),
        help="the only one; unless told it is the Unix socket, and TCP beside it where marked",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{ONLY_ON_HYBRID}: needs no transport or the Unix socket; run on nothing else"
    )
    config.addinivalue_line(
        "markers", "alone: measures time or memory, so that nothing may run beside it"
    )
    config.addinivalue_line("markers", f"{ONLY_ON_VSOCK}: needs AF_VSOCK; run on nothing else")
    config.addinivalue_line("markers", f"{ON_TCP_TOO}: run beside the Unix socket on TCP as well")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked = metafunc.config.getoption("--transport")
    marked = metafunc.definition.get_closest_marker(ON_TCP_TOO)
    if asked is None and marked and "transport" in metafunc.fixturenames:
        metafunc.parametrize("transport", ("hybrid", "tcp"), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    only = {"hybrid": ONLY_ON_HYBRID, "vsock": ONLY_ON_VSOCK}
    here = config.getoption("--transport") or "hybrid"
    elsewhere = [marker for name, marker in only.items() if name != here]
    left_out = [item for item in items if any(map(item.get_closest_marker, elsewhere))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where CI is set, what cannot be tested is a failure: nothing may go unnoticed there."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longrepr}"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of the test's own, instead of pytest's.

    The path of a Unix socket may have 107 bytes, of which pytest's folder, with the names of the
    user and of the test in it, may leave none.
    """
    base = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="test-", dir=base if len(base) <= LONGEST_BASE else "/tmp"
    ) as folder:
        yield Path(folder)


@pytest.fixture
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    """The way to the proxy."""
    asked = request.config.getoption("--transport") or "hybrid"
    return TRANSPORTS[getattr(request, "param", asked)](tmp_path)


@pytest.fixture
def write_allowlist(tmp_path: Path) -> Callable[..., Path]:
    """Writes an allowlist of (address, port) pairs and returns its path."""

    def write(*endpoints: tuple[str, int], name: str = "allowlist.yaml") -> Path:
        path = tmp_path / name
        entries = "".join(f"- {{address: '{host}', port: {port}}}\n" for host, port in endpoints)
        path.write_text(f"allowlist:\n{entries}")
        return path

    return write


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts TCP servers, which end with the test."""
    servers: List[Server] = []

    def start(handler: Handler = echo, host: str = "127.0.0.1", port: int = 0) -> Server:
        need_address(host)
        servers.append(Server(handler, host, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def start_vmm(tmp_path: Path) -> Iterator[StartServer]:
    """Starts stand-ins for a VMM, which end with the test."""
    started: List[Server] = []

    def start(
        handler: Handler = echo,
        kind: Type[UnixServer] = Firecracker,
        path: Path = tmp_path / "vm",
    ) -> Server:
        started.append(kind(handler, path))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def start_vsock_server() -> Iterator[StartServer]:
    """Starts servers on AF_VSOCK, which end with the test."""
    servers: List[Server] = []

    def start(handler: Handler = echo) -> Server:
        servers.append(VsockServer(handler))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def launch(transport: Transport) -> Iterator[StartProxy]:
    """Starts the proxy with these arguments; ends with the test."""
    proxies: List[Proxy] = []

    def start(
        *arguments: str, ready: bool = True, on: Transport = transport, **process: object
    ) -> Proxy:
        proxy = Proxy(on, arguments, **process)  # type: ignore[arg-type]
        proxies.append(proxy)
        if ready:
            proxy.wait_ready()
        return proxy

    yield start
    for proxy in proxies:
        proxy.end()
        # pytest shows this where the test failed.
        print(f"the end of the log of {proxy.pid}:", *proxy.log.lines[-40:], sep="\n")


@pytest.fixture
def start_proxy(
    launch: StartProxy, transport: Transport, write_allowlist: Callable[..., Path]
) -> StartProxy:
    """Starts the proxy for an endpoint that its allowlist permits; ends with the test.

    on: where it listens, if not on the transport of the test.
    """

    def start(
        endpoint: Server | tuple[str, int],
        *options: str,
        workers: int = 4,
        config: Optional[Path] = None,
        on: Transport = transport,
        **process: object,
    ) -> Proxy:
        host, port = (endpoint.host, endpoint.port) if isinstance(endpoint, Server) else endpoint
        return launch(
            *("-w", str(workers)),
            *("--config", str(config or write_allowlist((host, port)))),
            *on.options(),
            *options,
            *(str(on.port), host, str(port)),
            on=on,
            **process,
        )

    return start


@pytest.fixture
def services_file(tmp_path: Path) -> Iterator[ServicesFile]:
    """The file that start_services() writes."""
    systemd = NotifySocket(str(tmp_path / "notify"))
    yield ServicesFile(tmp_path / "services.yaml", systemd)
    systemd.close()


@pytest.fixture
def start_services(
    launch: StartProxy, transport: Transport, services_file: ServicesFile
) -> StartProxy:
    """Starts the proxy for several services, which its file names; ends with the test."""

    def start(
        *services: Service,
        options: Sequence[str] = (),
        workers: int = 4,
        permitted: Optional[List[Tuple[str, int]]] = None,
        **process: object,
    ) -> Proxy:
        services_file.write(services, permitted)
        process.setdefault(
            "environment", {**os.environ, "NOTIFY_SOCKET": services_file.systemd.address}
        )
        return launch(
            *("-w", str(workers)),
            *("--config", str(services_file.path)),
            *transport.options(),
            *options,
            **process,
        )

    return start


@pytest.fixture
def metrics_path(tmp_path: Path) -> Path:
    """The Unix socket at which metrics are served."""
    return tmp_path / "metrics"


@pytest.fixture
def metrics_option(metrics_path: Path) -> Tuple[str, str]:
    """The option by which they are."""
    return "--metrics", f"unix:{metrics_path}"


@pytest.fixture
def resolv_conf() -> str:
    """How long a lookup in a network of its own waits for a name server that does not answer."""
    return PATIENT_RESOLV_CONF


@pytest.fixture
def network(tmp_path: Path, resolv_conf: str) -> Iterator[Namespace]:
    """A network of its own."""
    namespace = Namespace(tmp_path, resolv_conf)
    yield namespace
    namespace.close()


@pytest.fixture
def dns(network: Namespace) -> Iterator[NameServer]:
    """The name server of that network."""
    name_server = network.call(NameServer)
    yield name_server
    name_server.close()


@pytest.fixture
def start_inside(network: Namespace, start_server: StartServer) -> StartServer:
    """Starts TCP servers inside the network."""
    return lambda *arguments, **options: network.call(lambda: start_server(*arguments, **options))


@pytest.fixture
def signals() -> Iterator[Signals]:
    """What every process of the program has; this process's own handlers come back afterwards."""
    before = {number: signal.getsignal(number) for number in (*HANDLED, *IGNORED)}
    made = Signals()
    yield made
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    made.close()


@pytest.fixture
def start_service() -> Iterator[StartService]:
    """Starts instance metadata services, which end with the test."""
    services: List[MetadataService] = []

    def start(host: str = "127.0.0.1", **behaviour: object) -> MetadataService:
        need_address(host)
        services.append(MetadataService(Behaviour(**behaviour), host))  # type: ignore[arg-type]
        return services[-1]

    yield start
    for service in services:
        service.close()
