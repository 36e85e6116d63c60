"""As a service of systemd: what the proxy tells it, and the socket that it takes over."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.program import Proxy, Transport
from tests.support.servers import exchange, silent
from tests.support.systemd import NotifySocket, passing
from tests.support.timing import AT_ONCE, SLOWNESS, let_pass
from tests.support.transports import Hybrid, Tcp
from vsock_proxy.observing.report import Totals
from vsock_proxy.supervision.systemd import SHORTEST_INTERVAL, Notifier, inherited_sockets, summary

WATCHDOG_USEC = 200_000
SOCKET = "v.sock_8000"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    notify_socket = NotifySocket(str(tmp_path / "notify"))
    yield notify_socket
    notify_socket.close()


def service(systemd: NotifySocket, **variables: str) -> Dict[str, str]:
    """The environment of a service that this systemd starts."""
    return {**os.environ, "NOTIFY_SOCKET": systemd.address, **variables}


# The protocol


@pytest.mark.hybrid_only  # no transport has a part in it
def test_without_a_notify_socket_there_is_nothing_to_do() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})
    assert notifier.interval is None
    notifier.ready()
    notifier.watchdog()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_an_abstract_notify_socket_begins_with_an_at_sign() -> None:
    systemd = NotifySocket(f"@vsock-proxy-test-{os.getpid()}")
    Notifier({"NOTIFY_SOCKET": systemd.address}).ready()
    assert systemd.receive() == "READY=1"
    systemd.close()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_reloading_carries_the_time_of_the_monotonic_clock(systemd: NotifySocket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": systemd.address}).reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", systemd.receive())
    assert found and before <= int(found.group(1)) <= after


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_status_is_sent_only_when_it_has_changed(systemd: NotifySocket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.address})
    notifier.status("one")
    notifier.status("one")
    notifier.status("two")
    assert [systemd.receive(), systemd.receive()] == ["STATUS=one", "STATUS=two"]
    assert systemd.is_empty()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_stopping_asks_for_the_time_that_draining_may_take(systemd: NotifySocket) -> None:
    Notifier({"NOTIFY_SOCKET": systemd.address}).stopping(0.5)
    assert systemd.receive() == "STOPPING=1\nEXTEND_TIMEOUT_USEC=500000"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_watchdog_is_fed_twice_within_the_time_allowed(systemd: NotifySocket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "3000000"})
    assert notifier.interval == 1.5
    notifier.watchdog()
    assert systemd.receive() == "WATCHDOG=1"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_watchdog_of_a_microsecond_does_not_keep_the_master_busy(systemd: NotifySocket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "1"})
    assert notifier.interval == SHORTEST_INTERVAL


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog_is_fed_that_is_not_meant_for_this_process(
    systemd: NotifySocket, variables: Dict[str, str]
) -> None:
    Notifier({"NOTIFY_SOCKET": systemd.address, **variables}).watchdog()
    assert systemd.is_empty()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_variables_are_taken_out_of_the_environment(systemd: NotifySocket) -> None:
    environment = {
        "NOTIFY_SOCKET": systemd.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    Notifier(environment)
    assert environment == {"HOME": "/"}


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_systemd_that_has_gone_harms_nothing_and_is_complained_of_once(
    systemd: NotifySocket, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.address})
    systemd.close()
    notifier.ready()
    notifier.ready()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot notify systemd: Connection refused; going on"
    ]


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    ("services", "text"),
    [
        (1, "1 of 2 workers busy, 0 connections served, 0 failed"),
        (3, "3 services, 1 of 2 workers busy, 0 connections served, 0 failed"),
    ],
)
def test_the_status_counts_services_only_if_there_are_several(services: int, text: str) -> None:
    assert summary(services, 1, 2, Totals()) == text


# The service


def test_ready_means_that_connections_are_accepted(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket
) -> None:
    proxy = start_proxy(start_server(), environment=service(systemd), ready=False)
    systemd.wait_for("^READY=1$")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_status_tells_who_is_busy_and_what_was_done(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket
) -> None:
    environment = service(systemd, WATCHDOG_USEC=str(WATCHDOG_USEC))
    proxy = start_proxy(start_server(), environment=environment)
    systemd.wait_for("^STATUS=0 of 4 workers busy, 0 connections served, 0 failed$")
    with proxy.connect() as client:
        exchange(client, b"x")
        systemd.wait_for("^STATUS=1 of 4 workers busy, 1 connections served, 0 failed$")
    systemd.wait_for("^STATUS=0 of 4 workers busy, 1 connections served, 0 failed$")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_master_feeds_the_watchdog_only_while_it_is_not_stopped(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket
) -> None:
    environment = service(systemd, WATCHDOG_USEC=str(WATCHDOG_USEC))
    proxy = start_proxy(start_server(), environment=environment)
    for _ in range(3):
        systemd.wait_for("^WATCHDOG=1$")
    processes.stop(proxy.pid)
    while not systemd.is_empty():
        systemd.receive()
    let_pass(2 * WATCHDOG_USEC / 1e6, why="no news may come from a master that is stopped")
    assert systemd.is_empty()
    proxy.send(signal.SIGCONT)
    systemd.wait_for("^WATCHDOG=1$")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_begins_and_ends_whatever_the_allowlist_says(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket, tmp_path: Path
) -> None:
    proxy = start_proxy(start_server(), environment=service(systemd))
    systemd.wait_for("^READY=1$")
    (tmp_path / "allowlist.yaml").write_text("nonsense")
    proxy.send(signal.SIGHUP)
    systemd.wait_for("^RELOADING=1\nMONOTONIC_USEC=")
    systemd.wait_for("^READY=1$")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_stopping_is_told_when_the_drain_begins(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket
) -> None:
    proxy = start_proxy(start_server(silent), "--drain-timeout", "60", environment=service(systemd))
    with proxy.connect():
        proxy.wait_for_workers(1, " -> ")
        proxy.send(signal.SIGTERM)
        news = systemd.wait_for("^STOPPING=1\nEXTEND_TIMEOUT_USEC=")
        assert int(news.rsplit("=", 1)[1]) > 60_000_000
        assert not proxy.has_ended()


def fill(systemd: NotifySocket) -> None:
    """Leave no room for a message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(systemd.address)
        while select.select([], [sender], [], 0)[1]:
            sender.send(b"X_FILL=1")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_news_that_systemd_cannot_take_wait_in_order_the_newest_of_a_kind(
    systemd: NotifySocket,
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.address})
    fill(systemd)
    notifier.ready()
    for busy in range(1000):
        notifier.status(f"{busy} of 1000 workers busy")
    notifier.reloading()
    assert notifier.unsent
    while not systemd.is_empty():
        systemd.receive()
    notifier.send()
    news = [systemd.receive().split("\n")[0] for _ in range(3)]
    assert news == ["READY=1", "STATUS=999 of 1000 workers busy", "RELOADING=1"]
    assert systemd.is_empty()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_systemd_that_reads_nothing_keeps_the_master_from_nothing(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket
) -> None:
    fill(systemd)
    environment = service(systemd, WATCHDOG_USEC=str(WATCHDOG_USEC))
    proxy = start_proxy(start_server(), environment=environment)
    began = time.monotonic()
    for count in range(1, 6):
        proxy.send(signal.SIGHUP)
        proxy.log.wait_for("allowlist read again", count=count)
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK
    assert time.monotonic() - began < AT_ONCE * SLOWNESS


@pytest.mark.hybrid_only  # no transport has a part in it
def test_what_systemd_could_not_take_it_is_told_once_it_reads(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket
) -> None:
    fill(systemd)
    start_proxy(start_server(), environment=service(systemd))
    systemd.wait_for("^READY=1$")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_asked_for_while_draining_is_not_told(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket
) -> None:
    proxy = start_proxy(start_server(silent), environment=service(systemd))
    with proxy.connect():
        proxy.wait_for_workers(1, " -> ")
        proxy.send(signal.SIGTERM)
        systemd.wait_for("^STOPPING=1\n")
        systemd.messages.clear()
        proxy.send(signal.SIGHUP)
        # Acted on after SIGHUP.
        proxy.send(signal.SIGUSR1)
        proxy.log.wait_for("connections served")
    proxy.wait()
    while not systemd.is_empty():
        systemd.receive()
    assert all(news.startswith("STATUS=") for news in systemd.messages)


# The socket that systemd passes


def own(transport: Transport) -> Tuple[str, Path | str]:
    """The kind and address of the socket that the proxy's listener is."""
    if isinstance(transport, Tcp):
        return "tcp-listener", transport.place
    if isinstance(transport, Hybrid):
        return "unix-listener", transport.path
    return "vsock-listener", str(transport.port)


@pytest.mark.tcp_too
def test_a_passed_socket_is_served(
    start_proxy: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    proxy = start_proxy(start_server(), wrapper=passing(own(transport)))
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only
def test_the_path_of_a_passed_socket_stays_for_the_next_start(
    start_proxy: StartProxy, start_server: StartServer, transport: Hybrid
) -> None:
    proxy = start_proxy(start_server(), wrapper=passing(own(transport)))
    proxy.send(signal.SIGTERM)
    proxy.wait()
    assert transport.path.is_socket()


@pytest.mark.hybrid_only  # no transport has a part in it
def test_its_variables_leave_the_environment_even_if_meant_for_another() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "HOME": "/"}
    assert inherited_sockets(environment) == []
    assert environment == {"HOME": "/"}


@pytest.mark.hybrid_only  # no transport has a part in it
def test_sockets_passed_to_another_process_are_not_touched(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    proxy = start_proxy(start_server(), environment=environment)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only
@pytest.mark.parametrize(
    ("kind", "address", "problem"),
    [
        ("unix-not-listening", SOCKET, "not listening"),
        ("unix-datagram", SOCKET, "not a stream socket"),
        ("netlink", "", "neither AF_VSOCK, AF_UNIX nor TCP"),
        ("tcp-listener", "127.0.0.1:0", "no service listens there"),
        ("file", os.devnull, "Socket operation on non-socket"),
        ("unix-listener", "other", "--uds-path"),
    ],
)
def test_what_cannot_be_served_is_exit_code_69(
    run_passed: Callable[..., Proxy], kind: str, address: str, problem: str
) -> None:
    proxy = run_passed((kind, address))
    assert proxy.wait() == os.EX_UNAVAILABLE
    assert problem in proxy.log.only_line()


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("first", ["NOTIFY_SOCKET", "LISTEN_FDS"])
def test_titles_are_shown_though_the_first_variable_is_taken_out(
    start_proxy: StartProxy, start_server: StartServer, systemd: NotifySocket, first: str
) -> None:
    variables = {"NOTIFY_SOCKET": systemd.address, "LISTEN_FDS": "0"}
    environment = {first: variables[first], **service(systemd, **variables)}
    proxy = start_proxy(start_server(), environment=environment)
    proxy.wait_for_workers(4, "idle")


@pytest.mark.parametrize("count", ["0", ""], ids=["none", "empty"])
def test_no_passed_socket_means_that_one_is_bound(
    start_proxy: StartProxy, start_server: StartServer, count: str
) -> None:
    with_pid = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh"]
    environment = {**os.environ, "LISTEN_FDS": count}
    proxy = start_proxy(start_server(), wrapper=with_pid, environment=environment)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only
@pytest.mark.parametrize("count", ["1", "2", "-1", "x", "99999999999999999999"])
def test_a_passed_socket_that_is_not_there_is_exit_code_69(
    start_proxy: StartProxy, start_server: StartServer, count: str
) -> None:
    closed = ["sh", "-c", 'LISTEN_PID=$$ exec "$@" 3<&-', "sh"]
    environment = {**os.environ, "LISTEN_FDS": count}
    proxy = start_proxy(start_server(), wrapper=closed, environment=environment, ready=False)
    assert proxy.wait() == os.EX_UNAVAILABLE
    assert "systemd passed" in proxy.log.only_line()


@pytest.mark.hybrid_only
def test_the_second_of_two_sockets_that_no_service_asks_for_is_named(
    run_passed: Callable[..., Proxy],
) -> None:
    proxy = run_passed(("unix-listener", SOCKET), ("unix-listener", "other"))
    assert proxy.wait() == os.EX_UNAVAILABLE
    assert re.search(r"systemd passed Unix socket \S+/other, but no", proxy.log.only_line())


@pytest.mark.hybrid_only
def test_the_error_names_the_unit_of_the_socket_that_cannot_be_served(
    run_passed: Callable[..., Proxy],
) -> None:
    proxy = run_passed(("unix-listener", SOCKET), ("unix-not-listening", "other"))
    assert proxy.wait() == os.EX_UNAVAILABLE
    assert "(test2.socket) cannot be served: not listening" in proxy.log.only_line()


@pytest.mark.hybrid_only
def test_a_second_passed_socket_that_does_not_exist_is_exit_code_69(
    run_passed: Callable[..., Proxy],
) -> None:
    proxy = run_passed(
        ("unix-listener", SOCKET), environment={**os.environ, "LISTEN_FDS": "99999999999999999999"}
    )
    assert proxy.wait() == os.EX_UNAVAILABLE
    assert "systemd passed (unnamed) cannot be served" in proxy.log.only_line()


@pytest.fixture
def run_passed(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> Callable[..., Proxy]:
    def start(*sockets: Tuple[str, str], **process: object) -> Proxy:
        placed = (
            (kind, tmp_path / address if kind.startswith("unix") else address)
            for kind, address in sockets
        )
        return start_proxy(start_server(), wrapper=passing(*placed), ready=False, **process)

    return start
