"""The start of several services: all of them, or none and a line that names the one at fault."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.program.services.conftest import Scene
from tests.support.clients import is_refused
from tests.support.dns import NameServer
from tests.support.named import HERE, NAME
from tests.support.namespaces import RESOLV_CONF, Namespace, needs_namespace
from tests.support.program import PROJECT, Proxy, Transport, command
from tests.support.services import ServicesFile, letter, letter_at, names, service
from tests.support.timing import SLOWNESS
from tests.support.transports import Hybrid

# The beginning of a worker's title, as prctl(PR_SET_NAME) cuts it.
WORKER_NAME = "vsock-proxy: wo"


@pytest.fixture
def resolv_conf() -> str:
    return RESOLV_CONF


# One start: all or nothing


def start_of(
    services_file: ServicesFile, transport: Transport, trace: Path
) -> subprocess.CompletedProcess[str]:
    """Start the program, and write to a file where it listens and what it calls its processes."""
    tracer = ["strace", "-f", "-qq", "-e", "trace=prctl,listen", "-o", str(trace)]
    return subprocess.run(
        [*tracer, *command("--config", str(services_file.path), *transport.options())],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
        check=False,
    )


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def assert_nothing_is_left(proxy: Proxy, ports: List[int]) -> None:
    """No port is listened on, and no Unix socket is there."""
    for port in ports:
        assert is_refused(proxy, port)
        if isinstance(proxy.transport, Hybrid):
            assert not proxy.transport.path_of(port).exists()


@pytest.mark.tcp_too
@pytest.mark.parametrize("place", [0, 1, 2], ids=["the first", "the second", "the last"])
def test_a_port_in_use_stops_the_start_and_the_service_is_named(scene: Scene, place: int) -> None:
    ports = scene.ports(3)
    server = scene.server()
    with scene.transport.occupy(ports[place]):
        proxy = scene.start(*(service(port, server) for port in ports), ready=False)
        assert proxy.wait() == os.EX_UNAVAILABLE
        line = proxy.log.only_line()
    assert names(line, ports[place])
    assert "use" in line
    others = [port for port in ports if port != ports[place]]
    assert not any(names(line, port) for port in others)
    assert_nothing_is_left(proxy, others)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("place", [0, 1], ids=["the first", "the last"])
def test_a_forbidden_endpoint_stops_the_start_and_the_service_is_named(
    scene: Scene, place: int
) -> None:
    ports = scene.ports(2)
    servers = [scene.server(), scene.server()]
    proxy = scene.start(
        *(service(port, server) for port, server in zip(ports, servers)),
        permitted=[(servers[1 - place].host, servers[1 - place].port)],
        ready=False,
    )
    assert proxy.wait() == os.EX_CONFIG
    line = proxy.log.only_line()
    assert f"127.0.0.1:{servers[place].port} is not permitted by " in line
    # Two lines are the allowlist, and one begins the services.
    assert re.search(rf"services \S+, line {4 + place}: ", line)
    assert names(line, ports[place])
    assert_nothing_is_left(proxy, ports)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_proxy_of_one_service_names_none_when_it_cannot_listen(
    start_proxy: StartProxy, start_server: StartServer, transport: Hybrid
) -> None:
    with transport.occupy(transport.port):
        proxy = start_proxy(start_server(), ready=False)
        assert proxy.wait() == os.EX_UNAVAILABLE
    assert re.fullmatch(
        rf"vsock-proxy: cannot listen on Unix socket {transport.path}: in use, held by .*, "
        rf"pid {os.getpid()}",
        proxy.log.only_line(),
    )


@needs_strace
@pytest.mark.hybrid_only  # what is traced is the same
def test_no_worker_is_forked_before_every_service_is_bound(
    start_server: StartServer, services_file: ServicesFile, transport: Hybrid, tmp_path: Path
) -> None:
    ports = transport.ports(3)
    server = start_server()
    services_file.write(service(port, server) for port in ports)
    with transport.occupy(ports[2]):
        done = start_of(services_file, transport, tmp_path / "trace")
    assert done.returncode == os.EX_UNAVAILABLE
    trace = (tmp_path / "trace").read_text()
    assert trace.count("listen(") >= 2
    assert WORKER_NAME not in trace


@needs_strace
@pytest.mark.hybrid_only  # what is traced is the same
def test_no_listener_is_bound_before_every_service_is_judged(
    start_server: StartServer, services_file: ServicesFile, transport: Hybrid, tmp_path: Path
) -> None:
    ports = transport.ports(2)
    server = start_server()
    services_file.write(
        [service(ports[0], server), service(ports[1], ("192.0.2.1", 443))],
        permitted=[(server.host, server.port)],
    )
    done = start_of(services_file, transport, tmp_path / "trace")
    assert done.returncode == os.EX_CONFIG
    trace = (tmp_path / "trace").read_text()
    assert "listen(" not in trace
    assert WORKER_NAME not in trace


@pytest.mark.hybrid_only  # the network is of this machine's own
@needs_namespace
@pytest.mark.parametrize("entry", [NAME, HERE], ids=["permitted by name", "by address"])
def test_a_name_that_does_not_resolve_yet_holds_up_its_own_service_only(
    inside: Scene, network: Namespace, entry: str
) -> None:
    named, own, shared = inside.ports(3)
    late = inside.server(letter(b"N"), host=HERE)
    server = inside.server(letter(b"A"))
    proxy = inside.start(
        service(named, (NAME, late.port)),
        service(own, server, workers=1),
        service(shared, server),
        workers=2,
        permitted=[(entry, late.port), (server.host, server.port)],
    )
    proxy.log.wait_for(rf"{NAME}.* does not resolve: .* clients wait until it does")
    with proxy.connect(named) as early:
        early.sendall(b"?")
        assert letter_at(proxy, own) == b"A"
        assert letter_at(proxy, shared) == b"A"
        name_server = network.call(NameServer)
        try:
            name_server.set(NAME, HERE)
            assert early.recv(1) == b"N"
        finally:
            name_server.close()
