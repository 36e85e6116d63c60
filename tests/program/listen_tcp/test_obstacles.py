"""Listening on TCP: what stands in the way, and what is said of it."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import StartProxy, StartServer
from tests.program.listen_tcp.conftest import DOCUMENTATION, Anywhere, connect, message
from tests.support.means import need_address
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.program import run
from tests.support.services import ServicesFile, service

pytestmark = pytest.mark.hybrid_only  # it is TCP that is tested here


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
    transport: Anywhere, start_proxy: StartProxy, start_server: StartServer
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
