"""Listening on TCP: which addresses are served, on a socket of its own or of systemd."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.program.listen_tcp.conftest import connect, is_refused, message, settings
from tests.support.means import need_address
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.program import Proxy
from tests.support.servers import exchange, silent
from tests.support.systemd import passing
from vsock_proxy.config.places import place_of
from vsock_proxy.serving.listener import open_listener, socket_name

pytestmark = pytest.mark.hybrid_only  # it is TCP that is tested here

# Where struct tcp_info (linux/tcp.h) has the longest backlog, of a listener.
MAX_BACKLOG = slice(28, 32)


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
