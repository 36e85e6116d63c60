"""--check: the limits of the machine, AF_VSOCK, and what systemd passes."""

from __future__ import annotations

import os

import pytest

from tests.conftest import StartServer
from tests.support.checking import FAULT, OK, WARNING, Words, check
from tests.support.json_log import JSON, lines_of
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.systemd import passing
from tests.support.transports import Hybrid

# The machine


@needs_namespace
@pytest.mark.hybrid_only
def test_a_backlog_that_is_shorter_than_the_workers_is_a_warning(
    words: Words, network: Namespace
) -> None:
    network.run("sysctl", "-q", "-w", "net.core.somaxconn=3")
    checked = check(*words(("127.0.0.1", 9)), wrapper=network.wrapper)
    assert checked.has(
        WARNING,
        "^backlog: only 3 clients can wait at a listener, fewer than the 4 workers; run sysctl "
        "net.core.somaxconn=4$",
    )


@pytest.mark.hybrid_only
def test_where_no_service_is_on_vsock_nothing_is_said_of_it(words: Words) -> None:
    assert not [line for line in check(*words(("127.0.0.1", 9))).lines if "vsock" in line.lower()]


@needs_namespace
@pytest.mark.hybrid_only
def test_what_serving_would_warn_of_is_a_warning(words: Words) -> None:
    # In a network that is new, as in an enclave that has just booted.
    arguments = words(("192.0.2.1", 443))
    tcp = [*arguments[:2], "--listen-tcp", "127.0.0.1", *arguments[-3:]]
    wrapper = ["unshare", "--net"]
    checked = check(*tcp, wrapper=wrapper)
    assert checked.code == os.EX_OK
    assert checked.has(WARNING, "^nobody can connect to TCP 127.0.0.1:8000: Network is unreachable")
    assert checked.has(
        WARNING,
        "^cannot connect to 192.0.2.1:443: Network is unreachable; this machine has no route",
    )
    events = [line["event"] for line in lines_of(check(*tcp, *JSON, wrapper=wrapper).lines)]
    assert events.count("loopback_down") == 1


@pytest.mark.hybrid_only
def test_a_socket_that_systemd_passes_is_the_listener(
    words: Words, transport: Hybrid, start_server: StartServer
) -> None:
    arguments = words(start_server())
    checked = check(*arguments, wrapper=passing(("unix-listener", transport.path)))
    assert checked.code == os.EX_OK
    assert checked.has(OK, r"^systemd passes Unix socket \S+_8000$")
    transport.path.unlink()
    other = transport.path.with_name("other")
    checked = check(*arguments, wrapper=passing(("unix-listener", other)))
    assert checked.code == os.EX_UNAVAILABLE
    assert checked.has(FAULT, "^systemd passed Unix socket .*other, but no service listens there")


# AF_VSOCK


@pytest.mark.vsock_only
def test_on_vsock_the_transports_and_the_cid_are_named(
    words: Words, start_server: StartServer
) -> None:
    checked = check(*words(start_server()))
    assert checked.code == os.EX_OK
    assert checked.has(OK, "^AF_VSOCK is available$")
    assert checked.has(OK, r"^vsock transports: .*vsock_loopback \(to this machine itself, CID")
    assert checked.has(OK, r"^this machine has CID \d+$") or checked.has(
        WARNING, "^this machine has no CID; "
    )
    assert checked.has(OK, r"^vsock port \d+ is free$")
