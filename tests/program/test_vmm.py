"""A guest whose proxy is behind its VMM; and what the stand-ins for VMMs do themselves.

How the proxy connects to a guest through a VMM is in test_hybrid_endpoint.py.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Callable, Type

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.clients import end_of
from tests.support.servers import answer_at_the_end, exchange, read_all, read_exactly
from tests.support.transports import Hybrid
from tests.support.vmm import CloudHypervisor, Firecracker

pytestmark = pytest.mark.hybrid_only
OF_EITHER = pytest.mark.parametrize("kind", [Firecracker, CloudHypervisor])
MEBIBYTE = 1 << 20
ConnectGuest = Callable[[Type[Firecracker]], socket.socket]


@pytest.fixture
def connect_guest(start_vmm: StartServer, transport: Hybrid) -> ConnectGuest:
    """Starts a VMM of that kind, whose guest then connects to the proxy."""

    def connect(kind: Type[Firecracker]) -> socket.socket:
        vmm = start_vmm(kind=kind, path=transport.prefix)
        assert isinstance(vmm, Firecracker)
        return vmm.connect(transport.port)

    return connect


def end_and_listen(connection: socket.socket) -> None:
    connection.sendall(b"bye")
    connection.shutdown(socket.SHUT_WR)
    read_all(connection)
    connection.close()


# A guest and its proxy


@OF_EITHER
def test_much_passes_both_ways_between_a_guest_and_its_endpoint(
    kind: Type[Firecracker],
    start_proxy: StartProxy,
    start_server: StartServer,
    connect_guest: ConnectGuest,
) -> None:
    start_proxy(start_server())
    data = os.urandom(4 * MEBIBYTE)
    with connect_guest(kind) as guest:
        assert exchange(guest, data) == data


@OF_EITHER
def test_a_guest_that_closes_is_noticed(
    kind: Type[Firecracker],
    start_proxy: StartProxy,
    start_server: StartServer,
    connect_guest: ConnectGuest,
) -> None:
    proxy = start_proxy(start_server())
    with connect_guest(kind) as guest:
        assert exchange(guest, b"x") == b"x"
    proxy.log.wait_for(" ended: 1 bytes up, 1 bytes down, .*, client closed$")


def test_cloud_hypervisor_passes_on_that_its_guest_sends_no_more(
    start_proxy: StartProxy, start_server: StartServer, connect_guest: ConnectGuest
) -> None:
    start_proxy(start_server(answer_at_the_end))
    with connect_guest(CloudHypervisor) as guest:
        guest.sendall(b"words")
        guest.shutdown(socket.SHUT_WR)
        assert read_all(guest) == b"you said words"


def test_the_idle_timeout_ends_a_guest_of_firecracker_that_half_closes(
    start_proxy: StartProxy, start_server: StartServer, connect_guest: ConnectGuest
) -> None:
    proxy = start_proxy(start_server(answer_at_the_end), "--idle-timeout", "0.5", workers=1)
    with connect_guest(Firecracker) as guest:
        guest.sendall(b"words")
        guest.shutdown(socket.SHUT_WR)
        assert read_all(guest) == b""
    proxy.log.wait_for(" ended: 5 bytes up, 0 bytes down, .*, idle timeout$")
    proxy.wait_for_workers(1, "idle")


def test_a_guest_of_cloud_hypervisor_may_send_after_its_endpoint_ended(
    start_proxy: StartProxy, start_server: StartServer, connect_guest: ConnectGuest
) -> None:
    proxy = start_proxy(start_server(end_and_listen))
    with connect_guest(CloudHypervisor) as guest:
        assert read_all(guest) == b"bye"
        guest.sendall(b"words")
    proxy.log.wait_for(" ended: 5 bytes up, 3 bytes down, .*, endpoint closed$")


def test_a_guest_of_firecracker_has_all_ended_with_its_endpoint(
    start_proxy: StartProxy, start_server: StartServer, connect_guest: ConnectGuest
) -> None:
    proxy = start_proxy(start_server(end_and_listen), workers=1)
    with connect_guest(Firecracker) as guest:
        assert read_all(guest) == b"bye"
        with pytest.raises(BrokenPipeError):
            guest.sendall(b"words")
    proxy.log.wait_for(" ended: 0 bytes up, 3 bytes down, .*, endpoint closed$")
    proxy.wait_for_workers(1, "idle")


# The stand-ins


def test_a_guest_that_finds_nobody_at_the_host_is_reset(connect_guest: ConnectGuest) -> None:
    with pytest.raises(ConnectionResetError):
        connect_guest(Firecracker)


@pytest.mark.parametrize(
    ("request_line", "is_taken"),
    [
        (b"CONNECT 5000\n", True),
        (b"connect 5000\n", True),
        (b"CONNECT  5000 \n", True),
        (b"CONNECT 5001\n", False),
        (b"CONNECT 5\n", False),
        (b"CONNECT x\n", False),
        (b"CONNECT\n5000\n", True),
        (b"CONNECT 5000", False),
        (b"GET / HTTP/1.1\r\n", False),
        (b"\n", False),
        (b"", False),
    ],
    ids=ascii,
)
def test_a_request_leads_to_the_guest_or_is_closed_without_a_word(
    request_line: bytes, is_taken: bool, start_vmm: StartServer, tmp_path: Path
) -> None:
    start_vmm()
    with socket.socket(socket.AF_UNIX) as host:
        host.connect(str(tmp_path / "vm"))
        host.sendall(request_line)
        if not is_taken:
            host.shutdown(socket.SHUT_WR)
            assert end_of(host) == b""
        else:
            assert read_exactly(host, 14) == b"OK 1073741824\n"
            assert exchange(host, b"words") == b"words"


def test_each_connection_from_the_host_has_a_port_of_its_own(
    start_vmm: StartServer, tmp_path: Path
) -> None:
    start_vmm()
    for port in range(1 << 30, (1 << 30) + 3):
        with socket.socket(socket.AF_UNIX) as host:
            host.connect(str(tmp_path / "vm"))
            host.sendall(b"CONNECT 5000\n")
            assert read_exactly(host, 14) == b"OK %d\n" % port
