"""HTTP for whoever asks for metrics: what is answered, and what a client may not do."""

from __future__ import annotations

import select
import socket
import time
from typing import Iterator, List, Tuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vsock_proxy.observing.http_answers import (
    LARGEST_REQUEST,
    MOST_CONNECTIONS,
    PATIENCE,
    TEXT,
    Answer,
    Answers,
    _Request,
)

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

LARGE = b"0123456789abcdef" * (1 << 18)


def respond(path: str, accept: str) -> Answer:
    if path == "/large":
        return 200, TEXT, LARGE
    return 200, TEXT, f"{path} {accept}\n".encode()


class Site:
    """Answers, and the loop around them."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address: Tuple[str, int] = self.listener.getsockname()
        self._poll = select.poll()
        self.answers = Answers(self.listener, respond, self._poll)
        self._clients: List[socket.socket] = []

    def connect(self, *sent: bytes) -> socket.socket:
        """A client that says this."""
        client = socket.create_connection(self.address, timeout=20)
        self._clients.append(client)
        for data in sent:
            client.sendall(data)
        self.go_on()
        return client

    def go_on(self) -> None:
        """Do what there is to do, until nothing happens for a moment."""
        while True:
            events = self._poll.poll(20)
            if not events:
                return
            for fd, _ in events:
                self.answers.told_by(fd)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.go_on()
        self.answers.stop_listening()
        assert self.answers.is_over


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def body(client: socket.socket) -> bytes:
    """That of an answer that is there."""
    client.setblocking(False)
    data = b""
    while True:
        part = client.recv(1 << 16)
        if not part:
            return data.partition(b"\r\n\r\n")[2]
        data += part


def test_a_request_that_comes_in_pieces_has_its_answer_once_it_is_whole(site: Site) -> None:
    client = site.connect(b"GET /a HT", b"TP/1.0\r\nAccept: b\r\n")
    client.sendall(b"Accept: c\r\n\r\n")
    site.go_on()
    assert body(client) == b"/a b,c\n"


def test_a_request_that_names_no_version_gets_the_body_alone(site: Site) -> None:
    with site.connect(b"GET /a\r\n\r\n").makefile("rb") as answer:
        assert answer.read() == b"/a \n"


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(site: Site) -> None:
    client = site.connect(b"GET /large HTTP/1.0\r\n\r\n")
    client.setblocking(False)
    data = b""
    while not data.endswith(LARGE):
        try:
            data += client.recv(1 << 20)
        except BlockingIOError:
            site.go_on()
    assert data.partition(b"\r\n\r\n")[2] == LARGE


def test_a_client_that_goes_away_in_the_middle_of_its_answer_harms_nobody(site: Site) -> None:
    client = site.connect(b"GET /large HTTP/1.0\r\n\r\n")
    client.close()
    site.go_on()
    assert body(site.connect(b"GET /b HTTP/1.0\r\n\r\n")) == b"/b \n"


@pytest.mark.parametrize("said", [b"", b"GET /large HTTP/1.0\r\n", b"GET /large HTTP/1.0\r\n\r\n"])
def test_a_client_has_so_much_time_and_no_more(site: Site, said: bytes) -> None:
    before = time.monotonic()
    client = site.connect(said)
    latest = time.monotonic() + PATIENCE
    site.answers.look(before + PATIENCE - 0.001)
    assert before + PATIENCE <= (site.answers.due or 0.0) <= latest
    site.answers.look(latest)
    assert not site.answers.due
    while client.recv(1 << 20):
        pass


def test_one_client_too_many_takes_the_place_of_the_first(site: Site) -> None:
    clients = [site.connect() for _ in range(MOST_CONNECTIONS)]
    late = site.connect()
    assert clients[0].recv(1) == b""
    for client in [*clients[1:], late]:
        client.sendall(b"GET /c HTTP/1.0\r\n\r\n")
    site.go_on()
    assert {body(client) for client in [*clients[1:], late]} == {b"/c \n"}


def test_a_request_without_an_end_is_answered_once_it_is_too_long(site: Site) -> None:
    client = site.connect(b"GET /" + b"x" * LARGEST_REQUEST)
    assert client.recv(12) == b"HTTP/1.0 431"


def test_who_is_connected_gets_an_answer_after_the_last_was_accepted(site: Site) -> None:
    client = site.connect(b"GET /d HTTP/1.0\r\n")
    site.answers.stop_listening()
    assert not site.answers.is_over
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(site.address)
    client.sendall(b"\r\n")
    site.go_on()
    assert body(client) == b"/d \n"


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.sampled_from([b"GET", b"HEAD", b"PUT", b""]), st.binary(max_size=40)).map(
            lambda parts: parts[0] + b" /" + parts[1] + b" HTTP/1.1\r\nX" + parts[1] + b"\r\n\r\n"
        ),
    )
)
@example(b"GET /\n HTTP/1.1\r\nX\n\r\n\r\n")
def test_whatever_is_sent_has_an_answer_or_none_and_raises_nothing(request_: bytes) -> None:
    answer = _Request(request_, respond).answer
    assert isinstance(answer, bytes)
