"""Several services under one master: the start of them all, and what is seen of each."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import end_of, is_refused
from tests.support.dns import NameServer
from tests.support.namespaces import Namespace, why_not
from tests.support.program import ID, PROJECT, Proxy, Transport, command
from tests.support.servers import exchange, silent
from tests.support.services import (
    ServicesFile,
    common_pool,
    letter,
    letter_at,
    nothing_came,
    pool_of,
    say,
    service,
)
from tests.support.timing import SLOWNESS, wait_until
from tests.support.transports import Hybrid

NAME = "endpoint.test"
HERE = "127.0.0.2"
WATCHDOG_USEC = 200_000
# The beginning of a worker's title, as prctl(PR_SET_NAME) cuts it.
WORKER_NAME = "vsock-proxy: wo"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Namespace]:
    namespace = Namespace(tmp_path)
    yield namespace
    namespace.close()


# Who serves what


@pytest.mark.tcp_too
def test_each_port_leads_to_its_own_endpoint(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    ports = transport.ports(5)
    letters = [bytes([code]) for code in b"ABCDE"]
    proxy = start_services(
        *(service(port, start_server(letter(name))) for port, name in zip(ports, letters)),
        workers=2,
    )
    for _ in range(5):
        assert [letter_at(proxy, port) for port in ports] == letters


def test_a_service_with_workers_has_its_own_pool_and_the_others_share_one(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two, three, four = transport.ports(4)
    server = start_server()
    proxy = start_services(
        service(one, server),
        service(two, server, workers=2),
        service(three, server, workers=1),
        service(four, server),
        workers=3,
    )
    proxy.wait_for_workers(6, "idle")
    assert len(pool_of(proxy, two)) == 2
    assert len(pool_of(proxy, three)) == 1
    assert len(common_pool(proxy)) == 3


@pytest.mark.hybrid_only  # no transport has a part in it
def test_services_that_all_have_workers_of_their_own_leave_no_common_pool(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    proxy = start_services(service(one, server, workers=2), service(two, server, workers=3))
    proxy.wait_for_workers(5, "idle")
    assert common_pool(proxy) == []


def test_nobody_can_take_the_places_of_a_service_with_workers_of_its_own(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    shared, own = transport.ports(2)
    held = start_server(silent)
    proxy = start_services(
        service(shared, held), service(own, start_server(letter(b"A")), workers=1), workers=2
    )
    clients = [proxy.connect(shared) for _ in range(20)]
    held.wait_for_connections(2)
    for _ in range(10):
        assert letter_at(proxy, own) == b"A"
    assert len(held.accepted) == 2
    for client in clients:
        client.close()


def test_one_service_may_have_all_places_of_the_common_pool(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two = transport.ports(2)
    held, server = start_server(silent), start_server(letter(b"B"))
    proxy = start_services(service(one, held), service(two, server), workers=3)
    clients = [proxy.connect(one) for _ in range(3)]
    held.wait_for_connections(3)
    with proxy.connect(two) as waits:
        waits.sendall(b"?")
        proxy.wait_for_workers(3, " -> ")
        assert not server.accepted
        clients[0].close()
        assert waits.recv(1) == b"B"
    for client in clients[1:]:
        client.close()


def test_no_listener_of_a_pool_starves_while_another_is_always_busy(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    ports = transport.ports(4)
    proxy = start_services(
        *(service(port, start_server(letter(b"A"))) for port in ports), workers=1
    )
    # The first has many clients waiting by the time that the others have one.
    holder = proxy.connect(ports[0])
    assert say(holder) == b"A"
    crowd = [proxy.connect(ports[0]) for _ in range(200)]
    for client in crowd:
        client.sendall(b"?")
        client.shutdown(socket.SHUT_WR)
    holder.close()
    for port in ports[1:]:
        assert letter_at(proxy, port) == b"A"
    # Served in turn, not after all the others.
    assert nothing_came(crowd[-1])
    for client in crowd:
        assert client.recv(1) == b"A"
        client.close()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_options_of_the_command_line_are_the_defaults_of_each_service(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two = transport.ports(2)
    server = start_server(silent)
    proxy = start_services(
        service(one, server),
        service(two, server, idle_timeout=0),
        options=["--idle-timeout", "0.3"],
    )
    with proxy.connect(two) as lasting:
        server.wait_for_connections(1)
        with proxy.connect(one) as client:
            assert end_of(client) == b""
        proxy.log.wait_for("idle timeout")
        assert nothing_came(lasting)


@pytest.mark.hybrid_only  # the one service that listens on a Unix socket needs no other transport
def test_a_service_may_have_a_path_of_its_own(
    start_services: StartProxy, start_server: StartServer, tmp_path: Path, transport: Transport
) -> None:
    one, two = transport.ports(2)
    proxy = start_services(
        service(one, start_server(letter(b"A"))),
        service(two, start_server(letter(b"B")), uds_path=str(tmp_path / "other")),
    )
    assert letter_at(proxy, one) == b"A"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / f"other_{two}"))
        assert say(client) == b"B"


def test_sigterm_closes_all_services_and_lets_live_connections_end(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    ports = transport.ports(3)
    server = start_server()
    proxy = start_services(
        *(service(port, server) for port in ports[:2]), service(ports[2], server, workers=2)
    )
    clients = [proxy.connect(port) for port in ports]
    for client in clients:
        exchange(client, b"before")
    proxy.send(signal.SIGTERM)
    proxy.wait_for_workers(3)
    for port in ports:
        wait_until(lambda port=port: is_refused(proxy, port), "new clients are refused")  # type: ignore[misc]
    for client in clients:
        assert exchange(client, b"after") == b"after"
        assert not proxy.has_ended()
        client.close()
    assert proxy.wait(timeout=2) == os.EX_OK


def test_a_killed_master_leaves_free_ports_and_live_connections(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    ports = transport.ports(3)
    services = [service(port, start_server()) for port in ports]
    services[2]["workers"] = 2
    proxy = start_services(*services)
    pids = proxy.children()
    with proxy.connect(ports[0]) as live, proxy.connect(ports[2]) as other:
        exchange(live, b"before")
        exchange(other, b"before")
        proxy.wait_for_workers(2, " -> ")
        proxy.send(signal.SIGKILL)
        proxy.wait()
        for port in ports:
            wait_until(lambda port=port: is_refused(proxy, port), "the port is free")  # type: ignore[misc]
        again = start_services(*services)
        assert exchange(live, b"after") == b"after"
        assert exchange(other, b"after") == b"after"
        for port in ports:
            with again.connect(port) as client:
                assert exchange(client, b"x") == b"x"
    wait_until(lambda: not any(map(processes.is_alive, pids)), "no process is left")


def test_an_idle_proxy_of_many_services_makes_no_system_call(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    ports = transport.ports(5)
    server = start_server()
    proxy = start_services(
        *(service(port, server) for port in ports[:3]),
        *(service(port, server, workers=1) for port in ports[3:]),
        workers=2,
        # Without a service manager, which wants to hear of it.
        environment=None,
    )
    pids = [*proxy.wait_for_workers(4, "idle"), proxy.pid]
    wait_until(lambda: all(processes.state(pid) == "S" for pid in pids), "all sleep")
    before = wait_until(lambda: _settled(pids), "nothing happens any more")
    try:
        wait_until(lambda: _switches(pids) != before, "a process has woken", 2)
    except AssertionError:
        return
    pytest.fail("a process has woken")


def _switches(pids: List[int]) -> List[int]:
    return [processes.context_switches(pid) for pid in pids]


def _settled(pids: List[int]) -> List[int]:
    """The counts of switches, once they have stayed the same for a moment."""
    before = _switches(pids)
    try:
        wait_until(lambda: _switches(pids) != before, "one more", 0.3)
    except AssertionError:
        return before
    return []


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


def names(line: str, port: int) -> bool:
    """Whether a line says which service it is about."""
    return re.search(rf"(?<!\d){port}(?!\d)", line) is not None


def one_line(proxy: Proxy) -> str:
    """The only line of a proxy that has ended."""
    proxy.log.join()
    (line,) = proxy.log.lines
    return line


def assert_nothing_is_left(proxy: Proxy, ports: List[int]) -> None:
    """No port is listened on, and no Unix socket is there."""
    for port in ports:
        assert is_refused(proxy, port)
        if isinstance(proxy.transport, Hybrid):
            assert not proxy.transport.path_of(port).exists()


@pytest.mark.tcp_too
@pytest.mark.parametrize("place", [0, 1, 2], ids=["the first", "the second", "the last"])
def test_a_port_in_use_stops_the_start_and_the_service_is_named(
    start_services: StartProxy, start_server: StartServer, transport: Transport, place: int
) -> None:
    ports = transport.ports(3)
    server = start_server()
    with transport.occupy(ports[place]):
        proxy = start_services(*(service(port, server) for port in ports), ready=False)
        assert proxy.wait() == os.EX_UNAVAILABLE
        line = one_line(proxy)
    assert names(line, ports[place])
    assert "use" in line
    others = [port for port in ports if port != ports[place]]
    assert not any(names(line, port) for port in others)
    assert_nothing_is_left(proxy, others)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("place", [0, 1], ids=["the first", "the last"])
def test_a_forbidden_endpoint_stops_the_start_and_the_service_is_named(
    start_services: StartProxy, start_server: StartServer, transport: Transport, place: int
) -> None:
    ports = transport.ports(2)
    servers = [start_server(), start_server()]
    proxy = start_services(
        *(service(port, server) for port, server in zip(ports, servers)),
        permitted=[(servers[1 - place].host, servers[1 - place].port)],
        ready=False,
    )
    assert proxy.wait() == os.EX_CONFIG
    line = one_line(proxy)
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
        one_line(proxy),
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
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be")
@pytest.mark.parametrize("entry", [NAME, HERE], ids=["permitted by name", "by address"])
def test_a_name_that_does_not_resolve_yet_holds_up_its_own_service_only(
    start_services: StartProxy,
    start_server: StartServer,
    network: Namespace,
    transport: Transport,
    entry: str,
) -> None:
    named, own, shared = transport.ports(3)
    late = network.call(lambda: start_server(letter(b"N"), host=HERE))
    server = network.call(lambda: start_server(letter(b"A")))
    proxy = start_services(
        service(named, (NAME, late.port)),
        service(own, server, workers=1),
        service(shared, server),
        workers=2,
        permitted=[(entry, late.port), (server.host, server.port)],
        wrapper=network.wrapper,
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


# What is seen from outside


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_titles_of_many_services(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two, three = transport.ports(3)
    server = start_server()
    proxy = start_services(
        service(one, server), service(two, server), service(three, server, workers=2), workers=3
    )
    proxy.wait_for_workers(5, "idle")
    assert processes.title(proxy.pid) == "vsock-proxy: master, 3 services"
    assert sorted(proxy.titles()) == sorted(
        [
            *(f"vsock-proxy: worker {number} idle" for number in (1, 2, 3)),
            *(f"vsock-proxy: worker {three}/{number} idle" for number in (1, 2)),
        ]
    )


@pytest.mark.parametrize("own", [False, True], ids=["the common pool", "a pool of its own"])
def test_a_worker_that_relays_has_the_port_of_the_service_in_its_title(
    start_services: StartProxy, start_server: StartServer, transport: Transport, own: bool
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    keys = {"workers": 1} if own else {}
    proxy = start_services(service(one, server), service(two, server, **keys), workers=1)
    name = rf"{two}/1" if own else "1"
    with proxy.connect(two) as client:
        exchange(client, b"x")
        (busy,) = proxy.wait_for_workers(1, " -> ")
        assert re.fullmatch(
            rf"vsock-proxy: worker {name} \[{two}: {proxy.transport.peer_pattern} -> "
            rf"127\.0\.0\.1:{server.port}\]",
            processes.title(busy),
        )
    wait_until(lambda: processes.title(busy) == f"vsock-proxy: worker {name} idle", "it is idle")


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("keys", [{}, {"workers": 2}], ids=["of -w", "of its own"])
def test_one_service_of_a_file_is_shown_like_one_of_the_command_line(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    keys: Dict[str, object],
) -> None:
    server = start_server()
    proxy = start_services(service(transport.port, server, **keys), workers=2)
    proxy.wait_for_workers(2, "idle")
    assert processes.title(proxy.pid) == (
        f"vsock-proxy: master {transport.place} -> 127.0.0.1:{server.port}"
    )
    assert sorted(proxy.titles()) == ["vsock-proxy: worker 1 idle", "vsock-proxy: worker 2 idle"]
    with proxy.connect() as client:
        exchange(client, b"x")
        proxy.wait_for_workers(1, f"[{'unix' if transport.name == 'hybrid' else '1:'}")
    (line,) = proxy.log.wait_for(" ended: ")
    assert re.search(rf"info worker \d: {ID}{proxy.transport.peer_pattern} -> 127", line)
    assert [row.worker for row in board.ask(proxy)] == ["1", "2"]
    os.kill(proxy.workers()[0], signal.SIGKILL)
    proxy.log.wait_for(r"warning master: worker \d ended, signal 9")


@pytest.mark.tcp_too
def test_the_line_of_a_connection_names_its_service(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    proxy = start_services(service(one, server), service(two, server, workers=1), workers=1)
    for port, worker in ((one, "1"), (two, f"{two}/1")):
        with proxy.connect(port) as client:
            exchange(client, b"12345")
        (line,) = proxy.log.wait_for(rf" {port}: .* ended: ")
        assert re.search(
            rf"info worker {worker}: {ID}{port}: {proxy.transport.peer_pattern} -> "
            rf"127\.0\.0\.1:{server.port} ended: 5 bytes up, 5 bytes down, ",
            line,
        )


def test_a_connection_that_fails_names_its_service(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two = transport.ports(2)
    gone = start_server()
    proxy = start_services(service(one, start_server()), service(two, gone), workers=1)
    gone.close()
    with proxy.connect(two) as client:
        assert end_of(client) == b""
    proxy.log.wait_for(
        rf"error worker 1: {ID}{two}: {proxy.transport.peer_pattern} closed: cannot connect to 127"
    )


@pytest.mark.tcp_too
def test_the_connection_of_a_worker_that_dies_names_its_service(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    proxy = start_services(service(one, server), service(two, server), workers=1)
    with proxy.connect(two) as client:
        exchange(client, b"12345")
        (worker,) = proxy.wait_for_workers(1, " -> ")
        wait_until(lambda: "5 bytes down" in asked_totals(proxy), "all is counted")
        os.kill(worker, signal.SIGKILL)
        proxy.log.wait_for("worker 1 ended, signal 9")
    (line,) = proxy.log.matching(" ended: ")
    assert re.search(rf"warning master: {ID}{two}: {proxy.transport.peer_pattern} -> ", line)


def asked_totals(proxy: Proxy) -> str:
    """The totals now."""
    board.ask(proxy)
    return board.totals(proxy)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_dead_worker_of_a_services_own_pool_is_called_as_in_its_title(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    proxy = start_services(service(one, server), service(two, server, workers=1), workers=1)
    proxy.wait_for_workers(2, "idle")
    (old,) = pool_of(proxy, two)
    os.kill(old, signal.SIGKILL)
    proxy.log.wait_for(rf"worker {two}/1 ended, signal 9 .Killed.; starting another")
    wait_until(lambda: set(pool_of(proxy, two)) - {old}, "another worker")
    assert letter_at(proxy, two) == b"?"


def test_the_table_names_the_service_of_each_worker_and_counts_all(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    one, two, three = transport.ports(3)
    server = start_server()
    proxy = start_services(
        service(one, server), service(two, server), service(three, server, workers=1), workers=2
    )
    proxy.wait_for_workers(3, "idle")
    clients = [proxy.connect(port) for port in (two, three)]
    for client in clients:
        exchange(client, b"123")
    wait_until(lambda: "6 bytes down" in asked_totals(proxy), "all is counted")
    rows = board.ask(proxy)
    assert [row.worker for row in rows] == ["1", "2", f"{three}/1"]
    busy = {row.service for row in rows if row.state == "relaying"}
    assert busy == {str(two), str(three)}
    assert [row.service for row in rows if row.state == "idle"] == ["-"]
    assert "2 connections served, 0 failed" in board.totals(proxy)
    for client in clients:
        client.close()


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("own", [False, True], ids=["the common pool", "a pool of its own"])
def test_the_warning_that_all_are_busy_names_the_pool(
    start_services: StartProxy, start_server: StartServer, transport: Transport, own: bool
) -> None:
    one, two, three = transport.ports(3)
    server = start_server(silent)
    proxy = start_services(
        service(one, server),
        service(two, server),
        service(three, server, workers=2),
        workers=2,
    )
    port = three if own else two
    clients = [proxy.connect(port) for _ in range(2)]
    (line,) = proxy.log.wait_for("warning master: .* busy, further clients wait", timeout=5)
    if own:
        assert names(line, three)
        assert "'workers'" in line or "workers:" in line
    else:
        assert re.search(rf"\b{one}\b.*\b{two}\b|common|shared?\b", line)
        assert "-w" in line
        assert not names(line, three)
    for client in clients:
        client.close()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_start_tells_of_more_services_than_workers_in_the_common_pool(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    ports = transport.ports(4)
    server = start_server()
    proxy = start_services(
        *(service(port, server) for port in ports[:3]),
        service(ports[3], server, workers=1),
        workers=2,
    )
    proxy.log.wait_for(r"(info|warning) master: .*3 services.*2 workers.*-w")
    assert letter_at(proxy, ports[0]) == b"?"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_no_more_services_than_workers_is_no_line(
    start_services: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    ports = transport.ports(4)
    server = start_server()
    proxy = start_services(
        *(service(port, server) for port in ports[:3]),
        service(ports[3], server, workers=1),
        workers=3,
    )
    assert not proxy.log.matching(r"-w\b|warning")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_status_that_systemd_is_told_counts_services_and_all_workers(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    ports = transport.ports(3)
    server = start_server()
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": services_file.systemd.address,
        "WATCHDOG_USEC": str(WATCHDOG_USEC),
    }
    proxy = start_services(
        *(service(port, server) for port in ports[:2]),
        service(ports[2], server, workers=3),
        workers=4,
        environment=environment,
    )
    services_file.systemd.wait_for(
        "^STATUS=3 services, 0 of 7 workers busy, 0 connections served, 0 failed$"
    )
    with proxy.connect(ports[0]) as client, proxy.connect(ports[2]) as other:
        exchange(client, b"x")
        exchange(other, b"x")
        services_file.systemd.wait_for(
            "^STATUS=3 services, 2 of 7 workers busy, 2 connections served, 0 failed$"
        )


@pytest.mark.hybrid_only  # no transport has a part in it
def test_ready_is_told_when_every_service_accepts(
    start_services: StartProxy,
    start_server: StartServer,
    transport: Transport,
    services_file: ServicesFile,
) -> None:
    ports = transport.ports(6)
    server = start_server(letter(b"A"))
    proxy = start_services(
        *(service(port, server, workers=2) for port in ports),
        ready=False,
    )
    services_file.systemd.wait_for("^READY=1$")
    assert [letter_at(proxy, port) for port in ports] == [b"A"] * 6
