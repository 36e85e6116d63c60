"""Listening on TCP: which addresses are served, what stands in the way, and who is said to come.

What a TCP client has in common with others is tested with them, by tests that are marked tcp_too.
"""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import socket
import struct
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board
from tests.support.means import need_address
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.program import ID, Proxy, run
from tests.support.servers import UnixServer, exchange, read_exactly, silent
from tests.support.services import ServicesFile, letter, service
from tests.support.systemd import passing
from tests.support.timing import SLOWNESS
from vsock_proxy.config.places import place_of
from vsock_proxy.serving.listener import open_listener, socket_name
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

pytestmark = pytest.mark.hybrid_only  # it is TCP that is tested here

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Where struct tcp_info (linux/tcp.h) has the longest backlog, of a listener.
MAX_BACKLOG = slice(28, 32)
# What /proc/net/tcp calls a timer of keepalive (net/ipv4/tcp_ipv4.c, get_tcp4_sock()).
KEEPALIVE_TIMER = "02"
# RFC 5737: nobody has it.
DOCUMENTATION = "192.0.2.1"


@pytest.fixture
def port() -> int:
    """A port that is free on each address, and none that the kernel gives to clients."""
    while True:
        number = random.randrange(1 << 10, 1 << 15)
        try:
            socket.create_server(("", number)).close()
        except OSError:
            continue
        return number


@pytest.fixture
def listen(start_proxy: StartProxy) -> Callable[..., Proxy]:
    """Starts a proxy that listens at an address."""

    def start(endpoint: object, address: str, *options: str, **process: object) -> Proxy:
        need_address(address)
        return start_proxy(endpoint, "--listen-tcp", address, *options, **process)

    return start


@pytest.fixture
def transport(port: int) -> _Anywhere:
    return _Anywhere(port)


class _Anywhere:
    """TCP at an address that the test says."""

    name = "tcp"

    def __init__(self, port: int) -> None:
        self.port = port

    def options(self) -> List[str]:
        """What the proxy is started with: nothing, the address is the test's."""
        return []


def connect(address: str, port: int) -> socket.socket:
    """A client."""
    return socket.create_connection((address, port), timeout=20 * SLOWNESS)


def is_refused(address: str, port: int) -> bool:
    try:
        connect(address, port).close()
    except ConnectionRefusedError:
        return True
    return False


def settings(address: str, port: int, family: int = socket.AF_UNSPEC) -> ServiceSettings:
    """A service that listens there."""
    options = ServiceOptions(family=socket.AddressFamily(family), listen_tcp=address)
    return ServiceSettings(port, Endpoint("192.0.2.1", 443), options)


# Addresses


@pytest.mark.parametrize(
    ("address", "options", "served"),
    [
        ("127.0.0.1", [], (True, False)),
        ("0.0.0.0", [], (True, False)),
        ("::1", [], (False, True)),
        ("::", [], (True, True)),
        ("::", ["-4"], (True, True)),
    ],
)
def test_an_address_is_served_and_no_other(
    listen: Callable[..., Proxy],
    start_server: StartServer,
    port: int,
    address: str,
    options: List[str],
    served: Tuple[bool, bool],
) -> None:
    need_address("::1")
    listen(start_server(), address, *options)
    for client_address, is_served in zip(("127.0.0.1", "::1"), served):
        assert is_refused(client_address, port) is not is_served
        if is_served:
            with connect(client_address, port) as client:
                assert exchange(client, b"x") == b"x"


@needs_namespace
def test_a_warning_says_that_nobody_can_connect_while_loopback_is_down(
    listen: Callable[..., Proxy], port: int
) -> None:
    # In a network that is new, as in an enclave that has just booted.
    proxy = listen(("192.0.2.1", 443), "127.0.0.1", wrapper=["unshare", "--net"])
    (line,) = proxy.log.matching(" warning ")
    assert line.endswith(
        f"nobody can connect to TCP 127.0.0.1:{port}: Network is unreachable; the loopback "
        "interface is down, bring it up: ifconfig lo 127.0.0.1"
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::"])
def test_while_the_loopback_interface_is_up_there_is_no_warning(
    listen: Callable[..., Proxy], address: str
) -> None:
    proxy = listen(("192.0.2.1", 443), address)
    assert not proxy.log.matching(" warning ")


def test_with_6_all_ipv6_addresses_are_served_and_no_other(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    need_address("::1")
    server = start_server(host="::1")
    listen(server, "::", "-6")
    assert is_refused("127.0.0.1", port)
    with connect("::1", port) as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.parametrize(
    ("address", "family", "name"),
    [
        ("127.0.0.1", socket.AF_INET6, "TCP 127.0.0.1:{}"),
        ("::", socket.AF_UNSPEC, "TCP [::]:{}"),
        ("::", socket.AF_INET6, "TCP [::]:{}, IPv6 only"),
        ("::1", socket.AF_INET6, "TCP [::1]:{}"),
    ],
)
def test_a_service_and_its_socket_have_one_name(
    port: int, address: str, family: int, name: str
) -> None:
    need_address(address)
    asked = settings(address, port, family)
    listener = open_listener(asked)
    names = [place_of(asked), listener.name, socket_name(listener.sock)]
    listener.close()
    assert names == [name.format(port)] * 3


def test_a_link_local_address_is_listened_on_with_its_interface(port: int) -> None:
    asked = settings(_link_local(), port)
    listener = open_listener(asked)
    names = [listener.name, socket_name(listener.sock)]
    listener.close()
    assert names == [place_of(asked)] * 2


@needs_namespace
def test_a_socket_whose_interface_is_gone_has_its_number_in_its_name(
    network: Namespace, port: int
) -> None:
    network.run("ip", "link", "add", "brief", "up", "type", "veth", "peer", "name", "other")
    network.run("ip", "address", "add", "fe80::5/64", "dev", "brief", "nodad")
    asked = settings("fe80::5%brief", port)
    listener = network.call(lambda: open_listener(asked))
    number = listener.sock.getsockname()[3]
    network.run("ip", "link", "delete", "brief")
    name = network.call(lambda: socket_name(listener.sock))
    listener.close()
    assert name == f"TCP [fe80::5%{number}]:{port}"


def _link_local() -> str:
    """One that this machine has."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, *_, interface = line.split()
        if digits.startswith("fe80"):
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            return f"{address}%{interface}"
    pytest.skip("needs a link-local address")


def test_the_backlog_is_as_long_as_the_system_allows(port: int) -> None:
    listener = open_listener(settings("127.0.0.1", port))
    info = listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    listener.close()
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert int.from_bytes(info[MAX_BACKLOG], "little") == longest


def test_the_port_can_be_taken_again_while_connections_end_there(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    server = start_server(silent)
    first = listen(server, "127.0.0.1")
    with connect("127.0.0.1", port) as client:
        server.wait_for_connections(1)[0].close()
        # The proxy ends first, so the port is in TIME_WAIT on its side.
        assert client.recv(1) == b""
    first.log.wait_for(" ended: ")
    first.send(signal.SIGTERM)
    first.wait()
    listen(start_server(), "127.0.0.1")
    with connect("127.0.0.1", port) as client:
        assert exchange(client, b"x") == b"x"


# What stands in the way


def message(proxy: Proxy) -> str:
    """What a proxy says that cannot listen."""
    assert proxy.wait() == os.EX_UNAVAILABLE
    proxy.log.join()
    (line,) = proxy.log.lines
    return line


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (DOCUMENTATION, "Cannot assign requested address; this machine does not have the address"),
        ("fe80::1%0", "No such device; this machine does not have the address, or not yet"),
        ("fe80::1%4294967297", "No such device; this machine does not have the address, or not"),
        ("fe80::1%\u00b2", "No such device; this machine does not have the address, or not yet"),
        ("fe80::1%none", "No such device; this machine does not have the address, or not yet"),
        ("fe80::1", "Invalid argument; a link-local address needs its interface"),
    ],
)
def test_an_address_that_is_not_there_is_exit_code_69_and_says_so(
    start_proxy: StartProxy, start_server: StartServer, address: str, said: str
) -> None:
    need_address("::1" if ":" in address else address)
    proxy = start_proxy(start_server(), "--listen-tcp", address, ready=False)
    assert said in message(proxy)


@pytest.mark.parametrize(
    ("first", "second"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")],
)
def test_a_port_in_use_on_an_overlapping_address_is_exit_code_69(
    start_proxy: StartProxy, start_server: StartServer, port: int, first: str, second: str
) -> None:
    with socket.create_server((first, port)):
        proxy = start_proxy(start_server(), "--listen-tcp", second, ready=False)
        line = message(proxy)
    assert f"cannot listen on TCP {second}:{port}: Address already in use, held by " in line
    assert f", pid {os.getpid()}, on this address" in line
    assert "0.0.0.0 and :: include all" in line


def test_the_error_names_who_has_an_outgoing_connection_on_the_port(
    transport: _Anywhere, start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    with connect(server.host, server.port) as outgoing:
        host, transport.port = outgoing.getsockname()
        line = message(start_proxy(server, "--listen-tcp", host, ready=False))
    assert f"cannot listen on TCP {host}:{transport.port}: Address already in use, held by " in line
    assert f", pid {os.getpid()}, " in line


def test_two_services_whose_addresses_overlap_are_exit_code_69(
    launch: StartProxy, services_file: ServicesFile, start_server: StartServer, port: int
) -> None:
    server = start_server()
    services_file.write(
        [service(port, server, listen_tcp=address) for address in ("127.0.0.1", "0.0.0.0")]
    )
    proxy = launch("--config", str(services_file.path), ready=False)
    assert (
        f"cannot listen on TCP 0.0.0.0:{port}: Address already in use, held by this proxy itself, "
        f"pid {proxy.pid}, on " in message(proxy)
    )


def test_a_port_that_takes_a_capability_says_which_and_how(
    write_allowlist: Callable[..., Path],
) -> None:
    if not shutil.which("setpriv") or os.geteuid() != 0:
        pytest.skip("needs root and setpriv, to give the capability up")
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("needs a system on which ports are privileged")
    without = ["setpriv", "--bounding-set", "-net_bind_service"]
    words = ["--config", str(write_allowlist((DOCUMENTATION, 443))), "--listen-tcp", "127.0.0.1"]
    done = run(*words, "1", DOCUMENTATION, "443", wrapper=without)
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr.startswith(
        "vsock-proxy: cannot listen on TCP 127.0.0.1:1: Permission denied; ports below 1024 need "
        "CAP_NET_BIND_SERVICE: have a .socket unit pass the port, or set AmbientCapabilities= and "
        "CapabilityBoundingSet= of the unit to it and PrivateUsers=no, or take a higher port"
    )


@needs_namespace
def test_a_higher_port_that_may_not_be_had_says_what_may_forbid_it(
    network: Namespace, write_allowlist: Callable[..., Path]
) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv, to give the capability up")
    network.run("sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=5000")
    without = [*network.wrapper, "setpriv", "--bounding-set", "-net_bind_service"]
    words = ["--config", str(write_allowlist((DOCUMENTATION, 443))), "--listen-tcp", "127.0.0.1"]
    done = run(*words, "4999", DOCUMENTATION, "443", wrapper=without)
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr == (
        "vsock-proxy: cannot listen on TCP 127.0.0.1:4999: Permission denied; a security module "
        "such as SELinux forbids it, or net.ipv4.ip_unprivileged_port_start is higher\n"
    )


# Sockets of systemd


def test_what_a_socket_unit_binds_for_a_port_alone_is_all_addresses(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    need_address("::1")
    listen(start_server(), "::", wrapper=passing(("tcp-dual-stack", str(port))))
    for address in ("127.0.0.1", "::1"):
        with connect(address, port) as client:
            assert exchange(client, b"x") == b"x"


def test_a_socket_that_is_of_ipv6_only_is_not_taken_for_one_of_both(
    start_proxy: StartProxy, start_server: StartServer, port: int
) -> None:
    need_address("::1")
    passed = passing(("tcp-listener", f":::{port}"))
    proxy = start_proxy(start_server(), "--listen-tcp", "::", wrapper=passed, ready=False)
    line = message(proxy)
    assert f"systemd passed TCP [::]:{port}, IPv6 only, but no service listens there" in line


# Who comes


@pytest.mark.parametrize(
    ("address", "peer"), [("127.0.0.1", r"127\.0\.0\.1:{}"), ("::1", r"\[::1\]:{}")]
)
def test_a_client_is_called_by_its_address_and_port_everywhere(
    listen: Callable[..., Proxy], start_server: StartServer, port: int, address: str, peer: str
) -> None:
    proxy = listen(start_server(), "::", workers=1)
    with connect(address, port) as client:
        name = peer.format(client.getsockname()[1])
        assert exchange(client, b"x") == b"x"
        proxy.wait_for_workers(1, f"[{name} -> ".replace("\\", ""))
        assert [re.fullmatch(name, row.client) for row in board.ask(proxy)] != [None]
    proxy.log.wait_for(rf"info worker 1: {ID}{name} -> .* ended: 1 bytes up, 1 bytes down")


def test_services_with_one_port_are_called_by_their_addresses(
    launch: StartProxy, services_file: ServicesFile, start_server: StartServer, port: int
) -> None:
    need_address("::1")
    server = start_server(letter(b"A"))
    services_file.write(
        [service(port, server, listen_tcp=address) for address in ("127.0.0.1", "::1")]
    )
    proxy = launch("--config", str(services_file.path))
    with connect("::1", port) as client:
        client.sendall(b"?")
        assert read_exactly(client, 1) == b"A"
        name = rf"\[::1\]:{port}: \[::1\]:{client.getsockname()[1]}"
    proxy.log.wait_for(rf"info worker \d: {ID}{name} -> .* ended: ")


def test_a_listener_on_another_address_is_what_a_reload_adds(
    start_services: StartProxy, services_file: ServicesFile, start_server: StartServer, port: int
) -> None:
    server = start_server(letter(b"A"))
    proxy = start_services(service(port, server, listen_tcp="127.0.0.1"))
    services_file.reload(proxy, service(port, server, listen_tcp="127.0.0.2"))
    assert is_refused("127.0.0.1", port)
    with connect("127.0.0.2", port) as client:
        client.sendall(b"?")
        assert read_exactly(client, 1) == b"A"


# How they end


def reset(client: socket.socket) -> None:
    """Reset a connection."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


def test_a_client_that_resets_is_a_reset_at_the_endpoint(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    server = start_server(silent)
    proxy = listen(server, "127.0.0.1")
    client = connect("127.0.0.1", port)
    endpoint = server.wait_for_connections(1)[0]
    reset(client)
    with pytest.raises(ConnectionResetError):
        endpoint.recv(1)
    proxy.log.wait_for(r" ended: .*, client reset \(Connection reset by peer\)$")


def test_a_client_whose_endpoint_cannot_be_reached_is_reset(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    server = start_server()
    listen(server, "127.0.0.1")
    server.close()
    # The proxy may be quick enough to do so before the client knows of its connection.
    with pytest.raises(ConnectionResetError), connect("127.0.0.1", port) as client:
        client.recv(1)


def test_a_client_whose_worker_dies_while_it_connects_is_reset(
    listen: Callable[..., Proxy], start_vmm: StartServer, port: int
) -> None:
    proxy = listen(start_vmm(silent, UnixServer), "127.0.0.1", workers=1)
    with connect("127.0.0.1", port) as client:
        client.sendall(b"x")
        (worker,) = proxy.wait_for_workers(1, "connecting [")
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.log.wait_for(r" closed: its worker died before there was a connection to unix:")


def test_a_client_that_is_gone_is_noticed_once_the_endpoint_sends(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    server = start_server(silent)
    proxy = listen(server, "127.0.0.1", workers=1)
    connect("127.0.0.1", port).close()
    endpoint = server.wait_for_connections(1)[0]
    endpoint.settimeout(20 * SLOWNESS)
    assert endpoint.recv(1) == b""
    endpoint.sendall(b"x")
    poll = select.poll()
    poll.register(endpoint, 0)
    assert poll.poll(20_000 * SLOWNESS)
    proxy.log.wait_for(r" ended: .*, client reset \(")


def test_a_lasting_client_is_asked_now_and_then_whether_it_is_there(
    listen: Callable[..., Proxy], start_server: StartServer, port: int
) -> None:
    proxy = listen(start_server(), "127.0.0.1", workers=1)
    with connect("127.0.0.1", port) as client:
        exchange(client, b"x")
        proxy.wait_for_workers(1, " -> ")
        near, far = f":{port:04X}", f":{client.getsockname()[1]:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        timers = [row[5][:2] for row in rows if row[1].endswith(near) and row[2].endswith(far)]
    assert timers == [KEEPALIVE_TIMER]
