"""Metadata services that do not behave: each is given up in time, and one line says why."""

from __future__ import annotations

import socket
import time
from typing import Callable

import pytest

from tests.conftest import StartServer
from tests.support.servers import Handler
from tests.support.timing import SLOWNESS, let_pass
from vsock_proxy.config import metadata
from vsock_proxy.config.metadata import look_up, look_up_apart
from vsock_proxy.errors import TryAgainError
from vsock_proxy.process.signals import Signals

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

HEAD = b"HTTP/1.1 200 OK\r\n"


def behaving_badly(answer: Callable[[socket.socket], None]) -> Handler:
    """A service that reads the request, and then does what it likes."""

    def handle(connection: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += connection.recv(4096)
        try:
            answer(connection)
        except OSError:
            pass  # who asked has gone
        connection.close()

    return handle


def again_and_again(data: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    """Sends the same without end."""

    def send(connection: socket.socket) -> None:
        while True:
            connection.sendall(data)
            let_pass(pause, why="the service is slow")

    return send


def first(head: bytes, then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        then(connection)

    return send


ENDLESS = {
    "a status line byte by byte": again_and_again(b"H", 0.1),
    "a header byte by byte": first(HEAD + b"X: ", again_and_again(b"x", 0.1)),
    "a header without end": first(HEAD + b"X: ", again_and_again(b"x" * 4096)),
    "headers without end": first(HEAD, again_and_again(b"X: y\r\n")),
    "100 Continue without end": again_and_again(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 Continue now and then": again_and_again(b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
    "a body byte by byte": first(HEAD + b"Content-Length: 900\r\n\r\n", again_and_again(b"a", 0.1)),
    "chunks without end": first(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", again_and_again(b"1\r\na\r\n", 0.1)
    ),
    "a chunk's size without end": first(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", again_and_again(b"0" * 4096)
    ),
}


@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_answer_without_end_is_given_up_in_time(
    start_server: StartServer, answer: Callable[[socket.socket], None]
) -> None:
    server = start_server(behaving_badly(answer))
    began = time.monotonic()
    with pytest.raises(TryAgainError, match="no instance metadata"):
        look_up(["{region}"], [f"http://127.0.0.1:{server.port}"], patience=1.5)
    assert time.monotonic() - began < 1.5 + 1 * SLOWNESS


BAD_ANSWERS = {
    "cut short": b"Content-Length: 9\r\n\r\neu-west-",
    "cut short where it looks whole": b"Content-Length: 10\r\n\r\neu-west-1",
    "no length": b"\r\neu-west-1",
    "no body": b"\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\neu-west-1",
    "no number": b"Content-Length: many\r\n\r\neu-west-1",
    "two lengths": b"Content-Length: 9\r\nContent-Length: 8\r\n\r\neu-west-1",
    "a length beyond all": b"Content-Length: 99999999999999999999\r\n\r\neu-west-1",
    "chunks cut short": b"Transfer-Encoding: chunked\r\n\r\n8\r\neu-west-\r\n",
    "a chunk cut short": b"Transfer-Encoding: chunked\r\n\r\n9\r\neu-west-",
    "a chunk of no size": b"Transfer-Encoding: chunked\r\n\r\nx\r\neu-west-1\r\n0\r\n\r\n",
    "a chunk of negative size": b"Transfer-Encoding: chunked\r\n\r\n-5\r\neu-west-1\r\n0\r\n\r\n",
    "a hyphen at the end": b"Content-Length: 8\r\n\r\neu-west-",
    "too long": b"Content-Length: 2000\r\n\r\n" + b"a" * 2000,
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_an_answer_that_is_not_whole_is_none(start_server: StartServer, answer: bytes) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(HEAD + answer)

    with pytest.raises(TryAgainError, match="no instance metadata"):
        ask_for_region(start_server, send)


GOOD_ANSWERS = {
    "longer than it says": b"Content-Length: 9\r\n\r\neu-west-1234",
    "the length twice": b"Content-Length: 9\r\nContent-Length: 9\r\n\r\neu-west-1",
    "in chunks": b"Transfer-Encoding: chunked\r\n\r\n8\r\neu-west-\r\n1\r\n1\r\n0\r\n\r\n",
    "with an end of line": b"Content-Length: 10\r\n\r\neu-west-1\n",
}


@pytest.mark.parametrize("answer", GOOD_ANSWERS.values(), ids=GOOD_ANSWERS.keys())
def test_an_answer_is_as_long_as_it_says(start_server: StartServer, answer: bytes) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + answer)

    assert ask_for_region(start_server, send) == "eu-west-1"


def ask_for_region(start_server: StartServer, answer: Callable[[socket.socket], None]) -> str:
    """What comes of a service without tokens whose answer to the question is this."""
    first_time = iter([True])

    def handle(connection: socket.socket) -> None:
        if next(first_time, False):
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            answer(connection)

    server = start_server(behaving_badly(handle))
    return look_up(["{region}"], [f"http://127.0.0.1:{server.port}"], patience=0)["{region}"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"\xff\x00\x1b[31m\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"\xff\xfe: \xff\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6" + b"y" * 60_000 + b"\r\n",
    ],
)
def test_what_is_no_answer_is_told_in_one_short_line(
    start_server: StartServer, answer: bytes
) -> None:
    server = start_server(behaving_badly(lambda connection: connection.sendall(answer)))
    with pytest.raises(TryAgainError) as caught:
        look_up(["{region}"], [f"http://127.0.0.1:{server.port}"], patience=0)
    assert len(str(caught.value)) < 500


def test_a_search_that_hangs_in_a_lookup_is_ended(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "look_up", lambda *asked: let_pass(60, why="it hangs"))
    monkeypatch.setattr(metadata, "GRACE", 0.2)
    began = time.monotonic()
    with pytest.raises(TryAgainError, match=r"within 0\.3 s"):
        look_up_apart(signals)(["{region}"], ["http://127.0.0.1"], 0.1)
    assert time.monotonic() - began < 5
