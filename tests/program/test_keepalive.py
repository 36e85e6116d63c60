"""An endpoint that falls silent: its connection ends, and that of one that just does not read not.

What takes minutes in life takes a second or two here: the limit is an argument.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.namespaces import THERE, Namespace, needs_namespace
from tests.support.relaying import tcp_pair, unix_pair
from tests.support.servers import exchange, silent
from tests.support.timing import SLOWNESS, wait_until
from vsock_proxy.serving.keepalive import (
    LIMIT,
    LOOKS_WITHIN_LIMIT,
    KeepAlive,
    Standing,
    read_standing,
)

SHORT = 2.0 * SLOWNESS
# Probes of the window come at doubling intervals, in life of at most half the limit. For this much
# longer than the limit they come in time here, too.
LONGER = 1.5 * SHORT
Connect = Callable[[], Tuple[socket.socket, socket.socket]]


# What the kernel is told


def test_a_lasting_connection_has_one_limit_for_unsent_data_and_silence(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    with proxy.connect() as client:
        exchange(client, b"x")
        (worker,) = proxy.wait_for_workers(1, "worker 1 [")
        (upstream,) = processes.tcp_sockets(worker)
        with upstream:
            assert upstream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert tcp_option(upstream, socket.TCP_KEEPIDLE) == 120
            assert tcp_option(upstream, socket.TCP_KEEPINTVL) == 30
            assert tcp_option(upstream, socket.TCP_KEEPCNT) == 4
            assert tcp_option(upstream, socket.TCP_USER_TIMEOUT) == 240_000


def tcp_option(sock: socket.socket, option: int) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, option)


@pytest.mark.alone
def test_the_end_is_put_off_while_an_endpoint_that_does_not_read_answers(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(silent), workers=1)
    with proxy.connect() as client:
        client.setblocking(False)
        fill(client, 0.5 * SLOWNESS)
        (worker,) = proxy.wait_for_workers(1, "worker 1 [")
        (upstream,) = processes.tcp_sockets(worker)
        with upstream:
            wait_until(lambda: was_put_off(worker, upstream), "a later end", 20)


def was_put_off(worker: int, upstream: socket.socket) -> bool:
    # As the timer's signal, but sooner.
    os.kill(worker, signal.SIGALRM)
    return tcp_option(upstream, socket.TCP_USER_TIMEOUT) > LIMIT * 1000


def test_the_timer_of_a_lasting_connection_ends_with_it(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    with proxy.connect() as client:
        exchange(client, b"x")
        proxy.wait_for_workers(1, "worker 1 [")
    (worker,) = proxy.wait_for_workers(1, "idle")
    for _ in range(3):
        os.kill(worker, signal.SIGALRM)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
    assert proxy.workers() == [worker]


@pytest.mark.hybrid_only  # beside the proxy
def test_each_side_that_may_fall_silent_is_watched_until_the_end(alarms: None) -> None:
    both = [tcp_pair(), tcp_pair(), unix_pair()]
    sides = [near for near, _ in both]
    keepalive = KeepAlive()
    keepalive.begin(*sides)
    timeouts = [tcp_option(sock, socket.TCP_USER_TIMEOUT) for sock in sides[:2]]
    assert timeouts == [LIMIT * 1000] * 2
    assert signal.getitimer(signal.ITIMER_REAL)[1] == LIMIT / LOOKS_WITHIN_LIMIT
    keepalive.end()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    for pair in both:
        for sock in pair:
            sock.close()


@pytest.mark.hybrid_only  # beside the proxy
def test_where_no_side_may_fall_silent_there_is_no_timer(alarms: None) -> None:
    near, far = unix_pair()
    KeepAlive().begin(near, far)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    near.close()
    far.close()


# What comes of it


@pytest.fixture
def alarms() -> Iterator[None]:
    """The timer of this process is left as it was, whatever a test does."""
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[Tuple[Namespace, Namespace]]:
    """One for the proxy and one for the endpoint, joined."""
    folders = tmp_path / "here", tmp_path / "there"
    for folder in folders:
        folder.mkdir()
    here, there = (Namespace(folder) for folder in folders)
    here.join(there)
    yield here, there
    here.close()
    there.close()


@pytest.fixture
def connect(networks: Tuple[Namespace, Namespace], alarms: None) -> Iterator[Connect]:
    """Makes a connection across the cable; the near end is its first."""
    here, there = networks
    made: List[socket.socket] = []

    def listen() -> socket.socket:
        listener = socket.create_server((THERE, 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return listener

    def make() -> Tuple[socket.socket, socket.socket]:
        listener = there.call(listen)
        near = here.call(lambda: socket.create_connection(listener.getsockname()))
        far, _ = listener.accept()
        made.extend((listener, near, far))
        near.setblocking(False)
        return near, far

    yield make
    for sock in made:
        sock.close()


def seconds_until_ended(sock: socket.socket, keepalive: KeepAlive, at_most: float) -> float:
    """How long the connection lives; looks as often as the timer would."""
    began = time.monotonic()
    poll = select.poll()
    poll.register(sock, 0)
    while time.monotonic() - began < at_most:
        if poll.poll(SHORT / LOOKS_WITHIN_LIMIT * 1000):
            break
        keepalive.look()
    return time.monotonic() - began


def fill(sock: socket.socket, patience: float = 0.2) -> None:
    """Send until nothing has been taken for patience, in seconds."""
    while select.select([], [sock], [], patience)[1]:
        sock.send(bytes(65536))


@pytest.mark.hybrid_only
def test_a_look_puts_the_end_off_for_as_long_as_the_window_is_closed(alarms: None) -> None:
    keepalive = KeepAlive(LIMIT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        near.setblocking(False)
        keepalive.begin(near)
        assert milliseconds_after_a_look(keepalive, near) == LIMIT * 1000
        fill(near)
        wait_until(
            lambda: milliseconds_after_a_look(keepalive, near) > LIMIT * 1000, "a later end", 20
        )
        while select.select([far], [], [], 0.5)[0]:
            far.recv(1 << 20)
        assert milliseconds_after_a_look(keepalive, near) == LIMIT * 1000
        keepalive.end()
    # A signal may come when there is nothing to look at any more.
    keepalive.look()


def milliseconds_after_a_look(keepalive: KeepAlive, sock: socket.socket) -> int:
    keepalive.look()
    return tcp_option(sock, socket.TCP_USER_TIMEOUT)


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
@pytest.mark.alone
def test_the_connection_ends_in_time_if_the_endpoint_is_lost_amid_data(
    networks: Tuple[Namespace, Namespace], connect: Connect
) -> None:
    near, _ = connect()
    keepalive = KeepAlive(SHORT)
    keepalive.begin(near)
    networks[0].part()
    near.send(b"x")
    lived = seconds_until_ended(near, keepalive, 10 * SHORT)
    keepalive.end()
    assert SHORT * 0.9 < lived < SHORT * 1.5
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
@pytest.mark.alone
def test_an_endpoint_that_does_not_read_for_longer_keeps_its_connection(
    connect: Connect,
) -> None:
    near, far = connect()
    keepalive = KeepAlive(SHORT)
    keepalive.begin(near)
    fill(near)
    assert seconds_until_ended(near, keepalive, LONGER) >= LONGER
    far.settimeout(5)
    assert far.recv(1) == b"\0"
    keepalive.end()


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
@pytest.mark.alone
def test_the_connection_ends_in_time_if_a_stalled_endpoint_is_lost(
    networks: Tuple[Namespace, Namespace], connect: Connect
) -> None:
    near, _ = connect()
    keepalive = KeepAlive(SHORT)
    keepalive.begin(near)
    fill(near)
    assert seconds_until_ended(near, keepalive, LONGER) >= LONGER
    networks[0].part()
    lived = seconds_until_ended(near, keepalive, 10 * SHORT)
    keepalive.end()
    # The last answer may have come a while before; the window's closing is known by a look.
    assert lived < SHORT * 1.75
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT


# What the kernel tells


def info(unacked: int = 0, since: int = 0, waiting: int = 0, window: int = 1000) -> bytes:
    """A struct tcp_info."""
    data = bytearray(256)
    for offset, value in ((24, unacked), (56, since), (144, waiting), (228, window)):
        data[offset : offset + 4] = value.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    ("given", "standing"),
    [
        (info(), Standing(False, 0.0)),
        (info(since=1500), Standing(False, 1.5)),
        (info(unacked=3, waiting=1000), Standing(False, 0.0)),
        (info(waiting=1000), Standing(True, 0.0)),
        (info(unacked=3, window=0), Standing(True, 0.0)),
        (info(waiting=1000, window=0, since=2000)[:160], Standing(True, 2.0)),
        (info(unacked=3, window=0)[:160], Standing(False, 0.0)),
        (info(waiting=1000, since=2000)[:104], Standing(False, 2.0)),
    ],
    ids=[
        "at rest",
        "silent",
        "under way",
        "nothing fits",
        "the window was shrunk",
        "no window told, nothing fits",
        "no window told",
        "an old kernel",
    ],
)
def test_the_window_is_closed_where_data_waits_for_it(given: bytes, standing: Standing) -> None:
    assert read_standing(given) == standing
