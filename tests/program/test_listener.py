"""Taking the port: what is in the way, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.program import run
from tests.support.servers import exchange


@pytest.mark.tcp_too
def test_a_port_in_use_is_exit_code_69_and_the_other_proxy_goes_on(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    first = start_proxy(server)
    second = start_proxy(server, ready=False)
    assert second.wait() == os.EX_UNAVAILABLE
    assert "in use" in second.log.only_line()
    with first.connect() as client:
        assert exchange(client, b"x") == b"x"
    assert len(first.log.wait_for(" ended: ")) == 1


@pytest.mark.tcp_too
def test_the_port_can_be_taken_again_after_the_end(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    first = start_proxy(server)
    first.send(signal.SIGTERM)
    assert first.wait() == os.EX_OK
    second = start_proxy(server)
    with second.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only
def test_a_stale_unix_socket_is_replaced(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "v.sock_8000"))
    proxy = start_proxy(start_server())
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only
def test_a_file_that_is_no_socket_is_left_alone(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> None:
    path = tmp_path / "v.sock_8000"
    path.write_text("precious")
    proxy = start_proxy(start_server(), ready=False)
    assert proxy.wait() == os.EX_UNAVAILABLE
    assert "exists and is not a socket" in proxy.log.only_line()
    assert path.read_text() == "precious"


@pytest.mark.hybrid_only
def test_the_unix_socket_is_removed_at_the_end(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> None:
    proxy = start_proxy(start_server())
    assert (tmp_path / "v.sock_8000").is_socket()
    proxy.send(signal.SIGTERM)
    proxy.wait()
    assert not (tmp_path / "v.sock_8000").exists()


@pytest.mark.hybrid_only
def test_a_path_that_is_another_file_at_the_end_is_left_without_a_word(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> None:
    path = tmp_path / "v.sock_8000"
    proxy = start_proxy(start_server())
    path.unlink()
    path.symlink_to(path)
    proxy.send(signal.SIGTERM)
    proxy.wait()
    proxy.log.join()
    assert path.is_symlink()
    assert not proxy.log.matching("cannot remove")


@pytest.mark.hybrid_only
def test_a_folder_that_is_not_there_is_exit_code_69(
    write_allowlist: Callable[..., Path], tmp_path: Path
) -> None:
    options = ["--config", str(write_allowlist(("127.0.0.1", 1)))]
    done = run(*options, "--uds-path", str(tmp_path / "none" / "v"), "8000", "127.0.0.1", "1")
    assert done.returncode == os.EX_UNAVAILABLE
    assert "No such file or directory" in done.stderr
