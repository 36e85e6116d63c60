"""Every way in which the two sides of a connection end: what is said of it, and what each sees.

A connection is a dialogue of steps, each of which one side takes once the step before has arrived
at the other. The client has no means to reset a connection but one: a socket that is closed with
bytes unread. vsock does not tell that either, so there it is an end like any other. On TCP nothing
tells that a client which has ended is wholly gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes, tcp_table
from tests.support.program import Proxy
from tests.support.servers import CHUNK, Server, read_all, read_exactly, silent
from tests.support.sides import reset
from tests.support.tcp_table import FIN_WAIT1
from tests.support.timing import SLOWNESS, let_pass, wait_until

END, RESET = "end", "reset"


class Dialogue:
    """One connection through a proxy of one worker, and the steps that its sides take."""

    def __init__(self, proxy: Proxy, server: Server) -> None:
        self.proxy = proxy
        self.client = proxy.connect()
        self.endpoint = server.wait_for_connections(1)[0]
        self.endpoint.settimeout(20 * SLOWNESS)
        self.client.sendall(b"u")
        read_exactly(self.endpoint, 1)
        self.endpoint.sendall(b"d")
        read_exactly(self.client, 1)
        (self.worker,) = proxy.wait_for_workers(1, " -> ")

    def take(self, step: str) -> None:
        """Take a step."""
        steps: Dict[str, Callable[[], None]] = {
            "client half-closes": self._client_half_closes,
            "client closes": self.client.close,
            "client closes with bytes unread": self._client_closes_unread,
            "client sends": self._client_sends,
            "endpoint half-closes": self._endpoint_half_closes,
            "endpoint closes": self._endpoint_closes,
            "endpoint closes with bytes unread": self._endpoint_closes_unread,
            "endpoint resets": self._endpoint_resets,
        }
        steps[step]()

    def seen_by_endpoint(self) -> str:
        """How the endpoint's connection ended: an error may come after the end."""
        try:
            read_all(self.endpoint)
        except ConnectionResetError:
            return RESET
        poll = select.poll()
        poll.register(self.endpoint, 0)
        poll.poll(0.2 * SLOWNESS * 1000)
        return RESET if self.endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else END

    def seen_by_client(self) -> str:
        """How the client's connection ended."""
        try:
            read_all(self.client)
            return END
        except ConnectionResetError:
            return RESET

    def ended(self) -> str:
        """What the log says of the end."""
        return self.proxy.log.wait_for(" ended: ")[0].split(" s, ")[1]

    def stop(self) -> None:
        """Let what follows come to the worker at once."""
        processes.stop(self.worker)

    def go_on(self) -> None:
        os.kill(self.worker, signal.SIGCONT)

    def _client_half_closes(self) -> None:
        self.client.shutdown(socket.SHUT_WR)
        assert read_all(self.endpoint) == b""

    def _client_closes_unread(self) -> None:
        # Where the endpoint has ended, it has sent something before.
        if not self._is_readable(self.client):
            self.endpoint.sendall(b"never read")
            wait_until(lambda: self._is_readable(self.client), "data at the client")
        self.client.close()

    def _client_sends(self) -> None:
        try:
            self.client.sendall(b"x")
        except OSError:
            # The proxy was quicker to end it.
            pass

    def _endpoint_half_closes(self) -> None:
        self.endpoint.shutdown(socket.SHUT_WR)
        assert read_all(self.client) == b""

    def _endpoint_closes(self) -> None:
        self.endpoint.close()
        assert read_all(self.client) == b""

    def _endpoint_closes_unread(self) -> None:
        if not self._is_readable(self.endpoint):
            self.client.sendall(b"never read")
            wait_until(lambda: self._is_readable(self.endpoint), "data at the endpoint")
        self.endpoint.close()

    def _endpoint_resets(self) -> None:
        reset(self.endpoint)

    @staticmethod
    def _is_readable(sock: socket.socket) -> bool:
        return bool(select.select([sock], [], [], 0)[0])


@pytest.fixture
def begin(start_proxy: StartProxy, start_server: StartServer) -> Iterator[Callable[[], Dialogue]]:
    begun: List[Dialogue] = []

    def start() -> Dialogue:
        server = start_server(silent)
        begun.append(Dialogue(start_proxy(server, workers=1), server))
        return begun[-1]

    yield start
    for dialogue in begun:
        dialogue.client.close()


def is_half_closed(dialogue: Dialogue) -> bool:
    """Whether the kernel has all of an upload and its end."""
    near = dialogue.endpoint.getpeername()[1]
    return any(row.near == near and row.state == FIN_WAIT1 for row in tcp_table.rows())


@dataclass(frozen=True)
class Case:
    """What is said of an end that the client makes, and what the endpoint sees of it.

    lasts_on_tcp: whether there the endpoint has to end too.
    """

    steps: List[str]
    said: str
    seen: str
    said_on_vsock: str = ""
    seen_on_vsock: str = ""
    said_on_tcp: str = ""
    lasts_on_tcp: bool = False

    @property
    def name(self) -> str:
        return ", ".join(self.steps)


RESET_BY_PEER = r" \(Connection reset by peer\)"
CLIENT_CASES = [
    Case(["client closes"], "client closed", END, lasts_on_tcp=True),
    Case(["client half-closes", "client closes"], "client closed", END, lasts_on_tcp=True),
    Case(["endpoint half-closes", "client closes"], "endpoint closed", END),
    Case(["endpoint half-closes", "client half-closes"], "endpoint closed", END),
    Case(
        ["client closes with bytes unread"],
        f"client reset{RESET_BY_PEER}",
        RESET,
        "client closed",
        END,
    ),
    Case(
        ["client half-closes", "client closes with bytes unread"],
        f"client reset{RESET_BY_PEER}",
        RESET,
        "client closed",
        END,
        # What the kernel calls a reset after an end.
        said_on_tcp=r"client reset \(Broken pipe\)",
    ),
]
ENDPOINT_CASES = [
    (["client half-closes", "endpoint half-closes"], "client closed"),
    (["client half-closes", "endpoint closes"], "client closed"),
    (["client half-closes", "endpoint resets"], f"endpoint reset{RESET_BY_PEER}"),
    (["endpoint resets"], f"endpoint reset{RESET_BY_PEER}"),
    (["endpoint closes with bytes unread"], f"endpoint reset{RESET_BY_PEER}"),
    # What the kernel calls a reset after an end.
    (["endpoint half-closes", "endpoint resets"], r"endpoint reset \(Broken pipe\)"),
    (
        ["endpoint half-closes", "endpoint closes with bytes unread"],
        r"endpoint reset \(Broken pipe\)",
    ),
    (["endpoint closes", "client sends"], r"endpoint reset \(Broken pipe\)"),
]


@pytest.mark.tcp_too
@pytest.mark.parametrize("case", CLIENT_CASES, ids=lambda case: case.name)
def test_an_end_that_the_client_makes(case: Case, begin: Callable[[], Dialogue]) -> None:
    dialogue = begin()
    for step in case.steps:
        dialogue.take(step)
    transport = dialogue.proxy.transport.name
    if transport == "tcp" and case.lasts_on_tcp:
        assert dialogue.seen_by_endpoint() == END
        dialogue.endpoint.shutdown(socket.SHUT_WR)
    on_vsock = transport == "vsock"
    said_here = {"vsock": case.said_on_vsock, "tcp": case.said_on_tcp}.get(transport)
    said = said_here or case.said
    seen = case.seen_on_vsock if on_vsock and case.seen_on_vsock else case.seen
    dialogue.proxy.log.wait_for(f" s, {said}$")
    assert dialogue.seen_by_endpoint() == seen


@pytest.mark.tcp_too
@pytest.mark.parametrize(("steps", "said"), ENDPOINT_CASES, ids=str)
def test_an_end_that_the_endpoint_makes(
    steps: List[str], said: str, begin: Callable[[], Dialogue]
) -> None:
    dialogue = begin()
    for step in steps:
        dialogue.take(step)
    dialogue.proxy.log.wait_for(f" s, {said}$")
    # On TCP alone the proxy has a means to pass a reset on to the client, which sees the first end.
    passed_on = dialogue.proxy.transport.name == "tcp" and said.endswith(RESET_BY_PEER)
    assert dialogue.seen_by_client() == (RESET if passed_on else END)


def test_a_client_that_leaves_bytes_unread_after_the_endpoints_end_resets(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    dialogue.endpoint.sendall(b"never read")
    dialogue.endpoint.shutdown(socket.SHUT_WR)
    poll = select.poll()
    poll.register(dialogue.client, select.POLLRDHUP)
    assert poll.poll(20_000 * SLOWNESS)
    dialogue.client.close()
    on_vsock = dialogue.proxy.transport.name == "vsock"
    said = "endpoint closed" if on_vsock else f"client reset{RESET_BY_PEER}"
    dialogue.proxy.log.wait_for(f" s, {said}$")
    assert dialogue.seen_by_endpoint() == (END if on_vsock else RESET)


# Both at once


@pytest.mark.tcp_too
def test_an_endpoint_reset_is_seen_though_the_client_closes_just_then(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    dialogue.stop()
    dialogue.take("endpoint resets")
    dialogue.take("client closes")
    dialogue.go_on()
    assert dialogue.ended().startswith("endpoint reset")


@pytest.mark.hybrid_only
def test_a_client_that_leaves_bytes_resets_while_the_endpoint_ends(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    dialogue.take("client half-closes")
    dialogue.endpoint.sendall(b"never read")
    wait_until(lambda: dialogue._is_readable(dialogue.client), "data at the client")
    dialogue.stop()
    dialogue.client.close()
    dialogue.endpoint.shutdown(socket.SHUT_WR)
    dialogue.go_on()
    assert dialogue.ended().startswith("client reset")


@pytest.mark.hybrid_only  # what the kernel takes of a vsock client may be less than an upload
def test_an_endpoint_that_ends_and_then_resets_is_logged_as_a_reset(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    size = 3_000_000
    dialogue.client.sendall(bytes(size))
    dialogue.client.shutdown(socket.SHUT_WR)
    dialogue.proxy.wait_for_workers(1, " -> ")
    wait_until(lambda: is_half_closed(dialogue), "all is in the kernel")
    dialogue.stop()
    dialogue.endpoint.shutdown(socket.SHUT_WR)
    dialogue.take("endpoint resets")
    dialogue.go_on()
    assert dialogue.ended().startswith("endpoint reset")


def test_an_endpoint_reset_is_seen_first_after_the_client_was_slow_too(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    size = 3_000_000
    sender = threading.Thread(target=dialogue.endpoint.sendall, args=(bytes(size),))
    sender.start()
    wait_until(lambda: dialogue._is_readable(dialogue.client), "data at the client")
    let_pass(0.2, why="the buffers fill, so that the relay waits for the client alone")
    read_exactly(dialogue.client, size)
    sender.join()
    dialogue.stop()
    dialogue.take("endpoint resets")
    dialogue.client.close()
    dialogue.go_on()
    assert dialogue.ended().startswith("endpoint reset")


def test_an_endpoint_that_resets_before_it_was_sent_a_byte_is_said_to(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server(silent)
    proxy = start_proxy(server, workers=1)
    with proxy.connect() as client:
        endpoint = server.wait_for_connections(1)[0]
        (worker,) = proxy.wait_for_workers(1, "worker 1 [")
        processes.stop(worker)
        client.sendall(b"never taken")
        reset(endpoint)
    os.kill(worker, signal.SIGCONT)
    proxy.log.wait_for(rf" 0 bytes up, 0 bytes down, .* s, endpoint reset{RESET_BY_PEER}$")


# Where one side goes while bytes wait


@pytest.mark.tcp_too
def test_a_client_that_goes_while_bytes_wait_for_it_broke_off(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    dialogue.endpoint.settimeout(0.3 * SLOWNESS)
    with pytest.raises(socket.timeout):
        while True:
            dialogue.endpoint.send(bytes(CHUNK))
    dialogue.endpoint.settimeout(20 * SLOWNESS)
    dialogue.client.close()
    assert dialogue.ended().startswith("client reset")
    assert dialogue.seen_by_endpoint() == RESET


def _fill(dialogue: Dialogue) -> int:
    """Have the client send what fits between it and an endpoint that does not read."""
    sent = 0
    dialogue.client.settimeout(0.3 * SLOWNESS)
    try:
        while True:
            sent += dialogue.client.send(bytes(CHUNK))
    except socket.timeout:
        return sent


def test_what_a_client_sent_before_it_went_arrives_at_a_slow_endpoint(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    sent = _fill(dialogue)
    dialogue.client.close()
    assert len(read_all(dialogue.endpoint)) == sent
    assert dialogue.ended() == "client closed"


# On vsock the kernel may take an answer before it knows that the client has gone.
@pytest.mark.hybrid_only
def test_an_unread_answer_to_a_client_that_went_is_logged_as_a_reset(
    begin: Callable[[], Dialogue],
) -> None:
    dialogue = begin()
    _fill(dialogue)
    dialogue.client.close()
    dialogue.endpoint.sendall(b"an answer")
    try:
        read_all(dialogue.endpoint)
    except ConnectionResetError:
        pass
    assert dialogue.ended() == "client reset (Broken pipe)"
