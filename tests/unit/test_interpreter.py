"""What is done besides CPython's documented interface does the same as that."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vsock_proxy.process.interpreter import Accept, accept_documented, accept_quickly

pytestmark = pytest.mark.hybrid_only


@pytest.mark.parametrize("accept", [accept_documented, accept_quickly])
def test_an_accepted_connection_carries_bytes_both_ways_and_ends(
    accept: Accept, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "listener"))
        listener.listen()
        client.bind(str(tmp_path / "client"))
        client.connect(str(tmp_path / "listener"))
        accepted, address = accept(listener, int(listener.family))
        client.sendall(b"there")
        assert accepted.recv(100) == b"there"
        accepted.sendall(b"back")
        accepted.close()
        assert client.recv(100) == b"back"
        assert client.recv(100) == b""
    assert address == str(tmp_path / "client")
    assert accepted.family == socket.AF_UNIX
    assert accepted.type == socket.SOCK_STREAM


@pytest.mark.parametrize("accept", [accept_documented, accept_quickly])
def test_where_nobody_has_connected_accepting_does_not_wait(accept: Accept, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "listener"))
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            accept(listener, int(listener.family))
