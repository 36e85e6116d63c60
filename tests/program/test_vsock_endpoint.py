"""Endpoints on AF_VSOCK: `vsock:CID`, over its loopback, and over vhost with no guest behind it.

A guest is in tests/vm/test_enclave.py.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from typing import Iterator, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.asleep import guest_asleep
from tests.support.clients import answers, end_of, failure
from tests.support.program import Proxy
from tests.support.servers import answer_at_the_end, exchange, only_hearing, read_all
from tests.support.timing import SLOWNESS, wait_until
from tests.support.transports import VMADDR_CID_LOCAL

pytestmark = pytest.mark.vsock_only

MEBIBYTE = 1 << 20
# A CID that no guest has.
NO_GUEST = 4242
NOBODY = "nothing listens on that port there, or too many clients wait there already"


@pytest.fixture
def sleeping_guest() -> Iterator[int]:
    """The CID of a guest that is there but does not answer, as before it has booted."""
    with guest_asleep() as cid:
        yield cid


def test_a_server_on_vsock_is_reached(
    start_proxy: StartProxy, start_vsock_server: StartServer
) -> None:
    proxy = start_proxy(start_vsock_server())
    for _ in range(20):
        with proxy.connect() as client:
            assert exchange(client, b"hello") == b"hello"


def test_much_passes_both_ways_at_the_same_time(
    start_proxy: StartProxy, start_vsock_server: StartServer
) -> None:
    proxy = start_proxy(start_vsock_server())
    data = os.urandom(4 * MEBIBYTE)
    with proxy.connect() as client:
        assert exchange(client, data) == data


def test_an_end_of_the_client_is_passed_on_and_the_answer_still_comes(
    start_proxy: StartProxy, start_vsock_server: StartServer
) -> None:
    proxy = start_proxy(start_vsock_server(answer_at_the_end))
    with proxy.connect() as client:
        client.sendall(b"words")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"you said words"


def test_an_end_of_the_server_is_passed_on_and_the_client_still_heard(
    start_proxy: StartProxy, start_vsock_server: StartServer
) -> None:
    heard: List[bytes] = []
    proxy = start_proxy(start_vsock_server(only_hearing(heard)))
    with proxy.connect() as client:
        assert client.recv(1) == b""
        client.sendall(b"words")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: heard == [b"words"], "they arrive")


def test_a_port_on_which_nobody_listens_is_explained(start_proxy: StartProxy) -> None:
    proxy = start_proxy(("vsock:1", 4_000_000_000))
    assert failure(proxy) == f"vsock:1:4000000000: Connection reset by peer; {NOBODY}"
    wait_until(lambda: "1 failed (1 refused," in board.totals_now(proxy), "it counts")


def test_a_server_whose_backlog_is_full_is_explained(start_proxy: StartProxy) -> None:
    with socket.socket(socket.AF_VSOCK) as listener, socket.socket(socket.AF_VSOCK) as first:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen(0)
        port = listener.getsockname()[1]
        first.connect((VMADDR_CID_LOCAL, port))
        assert failure(start_proxy(("vsock:1", port))) == (
            f"vsock:1:{port}: Connection reset by peer; {NOBODY}"
        )


def test_a_guest_that_is_not_there_is_explained(
    sleeping_guest: int, start_proxy: StartProxy
) -> None:
    proxy = start_proxy((f"vsock:{NO_GUEST}", 5000))
    assert failure(proxy) == (
        f"vsock:{NO_GUEST}:5000: No such device; there is no guest with that CID now, or a module "
        "is not loaded (modprobe vhost_vsock, or vsock_loopback for CID 1)"
    )
    wait_until(lambda: "1 unreachable," in board.totals_now(proxy), "it counts")


@pytest.mark.parametrize("seconds", [0.5, 5.0], ids=["less than the kernel's", "more than that"])
def test_a_guest_that_does_not_answer_is_given_up_after_the_timeout(
    seconds: float, sleeping_guest: int, start_proxy: StartProxy
) -> None:
    proxy = start_proxy((f"vsock:{sleeping_guest}", 5000), "--connect-timeout", str(seconds))
    with proxy.connect() as client:
        client.settimeout(seconds + 5 * SLOWNESS)
        began = time.monotonic()
        assert end_of(client) == b""
        # The proxy's time began a little before ours.
        assert time.monotonic() - began > seconds * 0.8
    assert failure_line(proxy).endswith(
        f"vsock:{sleeping_guest}:5000: no answer in time; it has not booted yet, or hangs, or "
        "nobody has that CID"
    )
    wait_until(lambda: "1 timed out," in board.totals_now(proxy), "it counts")


def failure_line(proxy: Proxy) -> str:
    return proxy.log.wait_for(" closed: cannot connect to ")[-1]


def test_a_client_that_leaves_a_guest_that_is_silent_frees_its_worker(
    sleeping_guest: int, start_proxy: StartProxy
) -> None:
    proxy = start_proxy((f"vsock:{sleeping_guest}", 5000), "--connect-timeout", "1000", workers=1)
    with proxy.connect():
        (worker,) = proxy.wait_for_workers(1, "connecting [")
        assert processes.title(worker).endswith(f" -> vsock:{sleeping_guest}:5000]")
    proxy.wait_for_workers(1, "idle")
    proxy.log.wait_for(" closed: it had gone before there was a connection to ")


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL])
def test_a_worker_that_waits_for_a_guest_heeds_the_master(
    number: signal.Signals, sleeping_guest: int, start_proxy: StartProxy
) -> None:
    proxy = start_proxy((f"vsock:{sleeping_guest}", 5000), "--connect-timeout", "3", workers=1)
    with proxy.connect() as client:
        (worker,) = proxy.wait_for_workers(1, "connecting [")
        proxy.send(number)
        proxy.wait()
        assert end_of(client) == b""
    wait_until(lambda: not processes.is_alive(worker), "it is gone")


def test_the_log_the_titles_and_the_table_give_an_endpoint_the_same_name(
    start_proxy: StartProxy, start_vsock_server: StartServer
) -> None:
    server = start_vsock_server()
    name = f"vsock:1:{server.port}"
    proxy = start_proxy(server, workers=1)
    assert proxy.log.matching(f" -> {name}, 1 worker$")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        (worker,) = proxy.wait_for_workers(1, " -> ")
        assert processes.title(worker).endswith(f" -> {name}]")
        assert [row.endpoint for row in board.ask(proxy)] == [name]
    assert re.search(f" -> {name} ended: 1 bytes up", proxy.log.wait_for(" ended: ")[0])


def test_each_cid_may_be_listed_or_all_of_them(
    start_proxy: StartProxy, start_vsock_server: StartServer, write_allowlist: object
) -> None:
    server = start_vsock_server()
    listed = write_allowlist(("vsock:*", server.port))  # type: ignore[operator]
    assert answers(start_proxy(server, config=listed))
