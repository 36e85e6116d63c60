"""Who connects, whatever the client's socket is bound to."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Callable, Dict

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board
from tests.support.program import ID
from tests.support.servers import exchange
from tests.support.timing import SLOWNESS
from vsock_proxy.observing.peers import NO_CID, TCP_PEER, UNIX_PEER, Peer, peer_name, peer_of
from vsock_proxy.serving.listener import Listener

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

# What a client binds its socket to, given a folder and a name that nobody else has.
BOUND: Dict[str, Callable[[Path], str]] = {
    "a path": lambda folder: str(folder / "client"),
    "a path that is no text": lambda folder: str(folder / "client\udcff\n"),
    "the longest path": lambda folder: str(folder / "client").ljust(107, "x"),
    "an abstract name": lambda folder: f"\0{folder}",
    "an abstract name with a newline and a NUL": lambda folder: f"\0{folder}\n\0",
    "a name that the kernel chooses": lambda folder: "",
}
bound = pytest.mark.parametrize("bind", BOUND.values(), ids=BOUND.keys())


@pytest.mark.parametrize(
    ("address", "peer", "name"),
    [
        ((16, 1024), (16, 1024), "16:1024"),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), "4294967295:4294967295"),
        ((0, 0), (0, 0), "0:0"),
        ("", UNIX_PEER, "unix"),
        (None, UNIX_PEER, "unix"),
        ("/run/client", UNIX_PEER, "unix"),
        ("ab", UNIX_PEER, "unix"),
        (b"\0client", UNIX_PEER, "unix"),
        (b"\x0000001", UNIX_PEER, "unix"),
        (("127.0.0.1", 1), (TCP_PEER, 1, 0, 0xFFFF7F000001), "127.0.0.1:1"),
        (("255.255.255.255", 65535), (TCP_PEER, 65535, 0, 0xFFFFFFFFFFFF), "255.255.255.255:65535"),
        (("::ffff:127.0.0.1", 1, 0, 0), (TCP_PEER, 1, 0, 0xFFFF7F000001), "127.0.0.1:1"),
        (("::1", 1, 0, 0), (TCP_PEER, 1, 0, 1), "[::1]:1"),
        (("fe80::1", 2, 0, 3), (TCP_PEER, 2, 0xFE80 << 48, 1), "[fe80::1]:2"),
        (("::ffff:0:0:1", 1, 0, 0), (TCP_PEER, 1, 0, 0xFFFF << 48 | 1), "[::ffff:0:0:1]:1"),
    ],
)
def test_whatever_accept_may_give_is_a_peer_with_a_name(
    address: object, peer: Peer, name: str
) -> None:
    assert peer_of(address) == peer
    assert peer_name(peer_of(address)) == name


def test_who_is_no_guest_has_a_cid_that_no_guest_can_have() -> None:
    assert UNIX_PEER[0] == NO_CID > 0xFFFFFFFF
    assert TCP_PEER > NO_CID


def test_what_a_tcp_client_left_on_the_scoreboard_is_no_part_of_a_peer() -> None:
    assert peer_name((16, 1024, 5, 6)) == "16:1024"
    assert peer_name((*UNIX_PEER, 5, 6)) == "unix"


def connect(path: Path, name: str) -> socket.socket:
    """A client that is bound to a name first."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20 * SLOWNESS)
    client.bind(name)
    client.connect(str(path))
    return client


@bound
def test_a_bound_unix_client_is_accepted_as_unix(
    bind: Callable[[Path], str], tmp_path: Path
) -> None:
    path = tmp_path / "listener"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with connect(path, bind(tmp_path)):
            client, peer = Listener(sock, socket.AF_UNIX, "test").accept()
            client.close()
    assert peer == UNIX_PEER


@bound
def test_a_bound_unix_client_is_served_like_any_other(
    bind: Callable[[Path], str], tmp_path: Path, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    (worker,) = proxy.wait_for_workers(1, "idle")
    with connect(tmp_path / "v.sock_8000", bind(tmp_path)) as client:
        assert exchange(client, b"x") == b"x"
        assert proxy.wait_for_workers(1, "[unix -> ") == [worker]
        assert [row.client for row in board.ask(proxy)] == ["unix"]
    proxy.log.wait_for(rf"info worker 1: {ID}unix -> .* ended: 1 bytes up, 1 bytes down")
