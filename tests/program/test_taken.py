"""A place that is taken: who holds it is named where listening fails."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.program import run
from tests.support.servers import exchange
from tests.support.transports import Hybrid, Tcp, Vsock


@pytest.mark.tcp_too
def test_a_port_that_another_proxy_has_names_that_one(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    first = start_proxy(server)
    second = start_proxy(server, ready=False)
    assert second.wait() == os.EX_UNAVAILABLE
    assert f"in use, held by vsock-proxy, pid {first.pid}" in second.log.only_line()
    with first.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.tcp_too
def test_a_port_that_another_program_has_names_that_one(
    transport: Hybrid | Tcp | Vsock, start_proxy: StartProxy, start_server: StartServer
) -> None:
    with transport.occupy(transport.port):
        proxy = start_proxy(start_server(), ready=False)
        assert proxy.wait() == os.EX_UNAVAILABLE
    assert re.search(rf"in use, held by \S.*, pid {os.getpid()}\b", proxy.log.only_line())


@pytest.mark.hybrid_only
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="needs root and setpriv, to give a capability up",
)
def test_who_may_not_look_is_told_what_shows_it(
    start_server: StartServer, write_allowlist: Callable[..., Path]
) -> None:
    server = start_server()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Without it, a process may not look at those that have more capabilities than it has.
        done = run(
            *("--config", str(write_allowlist((server.host, server.port)))),
            *("--listen-tcp", "127.0.0.1", str(port), server.host, str(server.port)),
            wrapper=["setpriv", "--bounding-set=-sys_ptrace"],
        )
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr.rstrip().endswith("; as root, ss -tanp shows which")
