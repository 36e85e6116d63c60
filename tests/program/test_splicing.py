"""What is sent in bulk goes through a pipe, and whatever happens to that, nothing is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import namespaces, processes, seccomp
from tests.support.namespaces import Namespace
from tests.support.relaying import Kinds, Relayed, on, tcp_pair
from tests.support.seccomp import Refused, refuse_splice
from tests.support.servers import exchange, read_all, read_exactly
from tests.support.sides import reset
from vsock_proxy.process import kernel
from vsock_proxy.serving import splicing
from vsock_proxy.serving.outcome import End, Outcome
from vsock_proxy.serving.relay import Relay
from vsock_proxy.serving.transports import SPLICED, TCP, UNIX, VSOCK

MIB = 1 << 20
NOBODY = 65534
NO_LIMIT = "the pages of pipes have no limit here"
# The byte of an urgent mark, which no other data here has; it may be lost.
MARK = b"!"
PIECE = b"0123456789abcdef" * 64
# Sends in bulk to one end of a relay and receives at the other.
Way = Tuple[Relayed, socket.socket, socket.socket]
JoinWay = Callable[..., Way]

# Of which transports the sender and the receiver are: spliced, and copied from a socket that has
# urgent data since Linux 5.15.
FROM_TCP: List[Kinds] = [("TCP", "Unix"), ("TCP", "TCP")]
URGENT: List[Kinds] = [*FROM_TCP, ("Unix", "Unix"), ("Unix", "TCP")]
NAMES = {TCP: "TCP", UNIX: "Unix", VSOCK: "vsock"}
SPLICED_WAYS: List[Kinds] = sorted((NAMES[near], NAMES[far]) for near, far in SPLICED)


def ways(all_kinds: List[Kinds]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", [on(kinds) for kinds in all_kinds])


@pytest.fixture
def join() -> Iterator[JoinWay]:
    """Joins a sender and a receiver by a relay."""
    joined: List[Relayed] = []

    def start(way: Kinds, relay: Optional[Relay] = None) -> Way:
        relayed = Relayed(relay or Relay(bulk_read=1), way)
        joined.append(relayed)
        return relayed, relayed.client, relayed.endpoint

    yield start
    for relayed in joined:
        relayed.close()


def _pass_a_piece(sender: socket.socket, receiver: socket.socket) -> None:
    """Send one piece, which is received before this returns."""
    sender.sendall(PIECE)
    assert read_exactly(receiver, len(PIECE)) == PIECE


def _send(sender: socket.socket, script: str) -> bytes:
    """Send a piece for each `.` and an urgent mark for each `!`; returns the pieces."""
    for step in script:
        if step == MARK.decode():
            _send_mark(sender)
        else:
            sender.sendall(PIECE)
    return PIECE * script.count(".")


def _send_mark(sender: socket.socket) -> None:
    try:
        sender.send(MARK, socket.MSG_OOB)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this kernel has no urgent data on a Unix socket")


def _received(receiver: socket.socket, size: int) -> bytes:
    """This number of bytes, not counting those of marks."""
    data = b""
    while len(data) < size:
        data += receiver.recv(size).replace(MARK, b"")
    return data


SCRIPTS = ("!..", ".!.", "..!", ".!!.", ".!.!.!.", "!", "!!..!!")


@ways(URGENT)
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_sent_around_an_urgent_mark_arrives(join: JoinWay, way: Kinds, script: str) -> None:
    _, sender, receiver = join(way)
    _pass_a_piece(sender, receiver)
    sent = _send(sender, script)
    assert _received(receiver, len(sent)) == sent
    sender.sendall(PIECE)
    assert _received(receiver, len(PIECE)) == PIECE


@ways(URGENT)
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_sent_around_an_urgent_mark_arrives_before_the_end(
    join: JoinWay, way: Kinds, script: str
) -> None:
    relayed, sender, receiver = join(way)
    _pass_a_piece(sender, receiver)
    sent = _send(sender, script)
    sender.close()
    assert read_all(receiver).replace(MARK, b"") == sent
    receiver.close()
    assert relayed.outcome().clean


@ways(FROM_TCP)
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_sent_around_an_urgent_mark_arrives_before_a_reset(
    join: JoinWay, way: Kinds, script: str
) -> None:
    relayed, sender, receiver = join(way)
    _pass_a_piece(sender, receiver)
    sent = _send(sender, script)
    reset(sender)
    assert _read_up_to_a_reset(receiver).replace(MARK, b"") == sent
    assert relayed.outcome() == Outcome(End.CLIENT_RESET, errno.ECONNRESET)


def _read_up_to_a_reset(receiver: socket.socket) -> bytes:
    """Everything; a reset passes on to TCP alone."""
    data = b""
    try:
        while True:
            part = receiver.recv(MIB)
            if not part:
                return data
            data += part
    except ConnectionResetError:
        return data


@ways(URGENT)
def test_urgent_data_arrives_though_the_receiver_did_not_read_for_a_while(
    join: JoinWay, way: Kinds
) -> None:
    _, sender, receiver = join(way)
    sender.settimeout(0.3)
    sent = 0
    with pytest.raises(socket.timeout):
        while True:
            sent += sender.send(bytes(MIB))
            _send_mark(sender)
    sender.shutdown(socket.SHUT_WR)
    assert len(read_all(receiver).replace(MARK, b"")) == sent


@ways(URGENT)
@pytest.mark.parametrize("script", ("..!", "..!.", "!!"))
def test_an_urgent_mark_costs_no_processor_time_afterwards(
    join: JoinWay, way: Kinds, script: str
) -> None:
    relayed, sender, receiver = join(way)
    _pass_a_piece(sender, receiver)
    _send(sender, script)
    assert not relayed.spins()


def test_a_download_with_urgent_marks_is_complete(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    rounds = 5

    def send(connection: socket.socket) -> None:
        for _ in range(rounds):
            connection.sendall(bytes(MIB))
            connection.send(MARK, socket.MSG_OOB)
            connection.sendall(PIECE)
            read_exactly(connection, 1)

    proxy = start_proxy(start_server(send), workers=1)
    with proxy.connect() as client:
        for _ in range(rounds):
            assert _received(client, MIB + len(PIECE)).endswith(PIECE)
            client.sendall(b".")


REFUSALS = ("EPERM", "EACCES", "ENOSYS", "EINVAL", "EOPNOTSUPP", "ENOMEM")
needs_refusal = pytest.mark.skipif(bool(seccomp.why_not()), reason=seccomp.why_not())
# Repeats only after a million bytes, so that a shift or a gap shows.
CONTENT = b"".join(struct.pack(">I", number) for number in range(MIB // 4))


class _Sandboxed(Relay):
    """A relay whose thread may not splice from the beginning on."""

    def __init__(self, error: str, which: Refused) -> None:
        super().__init__(bulk_read=1)
        self._refusal = getattr(errno, error), which

    def run(
        self,
        client: socket.SocketType,
        upstream: socket.SocketType,
        idle_timeout: float = 0.0,
        said: bytes = b"",
    ) -> Outcome:
        refuse_splice(*self._refusal)
        return super().run(client, upstream, idle_timeout, said)


@needs_refusal
@ways(SPLICED_WAYS)
@pytest.mark.parametrize("which", Refused)
@pytest.mark.parametrize("error", REFUSALS)
def test_where_splice_is_refused_everything_arrives(
    join: JoinWay, way: Kinds, which: Refused, error: str
) -> None:
    relayed, sender, receiver = join(way, _Sandboxed(error, which))
    thread = threading.Thread(target=_send_and_close, args=(sender,))
    thread.start()
    assert read_all(receiver) == CONTENT
    thread.join()
    receiver.close()
    assert relayed.outcome().clean


def _send_and_close(sender: socket.socket) -> None:
    sender.sendall(CONTENT)
    sender.close()


@needs_refusal
@ways(SPLICED_WAYS)
@pytest.mark.parametrize("which", Refused)
def test_what_a_pipe_holds_when_splice_is_refused_arrives(
    join: JoinWay, way: Kinds, which: Refused
) -> None:
    relay = Relay(bulk_read=1, on_lasting=lambda: refuse_splice(errno.EPERM, which))
    _, sender, receiver = join(way, relay)
    sender.settimeout(0.3)
    sent = 0
    with pytest.raises(socket.timeout):
        while True:
            # As the receiver does not read, this ends with a pipe that is full.
            sent += sender.send(CONTENT[sent % MIB :])
    sender.shutdown(socket.SHUT_WR)
    assert read_all(receiver) == (CONTENT * (sent // MIB + 1))[:sent]


@needs_refusal
@pytest.mark.hybrid_only
def test_where_splice_is_refused_a_reset_is_one(join: JoinWay) -> None:
    relayed, sender, receiver = join(("TCP", "Unix"), _Sandboxed("EPERM", Refused.ALL))
    _pass_a_piece(sender, receiver)
    reset(sender)
    assert relayed.outcome() == Outcome(End.CLIENT_RESET, errno.ECONNRESET)


@pytest.mark.hybrid_only
def test_a_reset_of_what_is_spliced_is_one(join: JoinWay) -> None:
    relayed, sender, receiver = join(("TCP", "Unix"))
    _pass_a_piece(sender, receiver)
    reset(sender)
    assert relayed.outcome() == Outcome(End.CLIENT_RESET, errno.ECONNRESET)


@pytest.mark.hybrid_only
def test_a_lost_connection_is_one_whatever_its_errno(tmp_path: Path) -> None:
    """A firewall's or a route's prohibition, which sandboxes say of splice() too."""
    if namespaces.why_not():
        pytest.skip(namespaces.why_not())
    namespace = Namespace(tmp_path)
    try:
        for address in ("2001:db8::1", "2001:db8::2"):
            namespace.add_address(address)
        near, far = namespace.call(lambda: tcp_pair("2001:db8::2", ("2001:db8::1", 0)))
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
        relayed = Relayed(Relay(bulk_read=1), endpoint_pair=(near, far))
        far.sendall(PIECE)
        assert read_exactly(relayed.client, len(PIECE)) == PIECE
        _prohibit(namespace, "2001:db8::2")
        relayed.client.sendall(PIECE)
        assert relayed.outcome() == Outcome(End.ENDPOINT_RESET, errno.EACCES)
        relayed.close()
    finally:
        namespace.close()


def _prohibit(namespace: Namespace, address: str) -> None:
    """Before the local routes, which have an address of this host delivered."""
    namespace.run("ip", "-6", "rule", "add", "pref", "0", "prohibit", "to", address)
    namespace.run("ip", "-6", "rule", "add", "pref", "1", "lookup", "local")
    namespace.run("ip", "-6", "rule", "del", "pref", "0", "lookup", "local")


@pytest.mark.hybrid_only
@pytest.mark.parametrize("size", (-1, 4096), ids=["fails", "gives less"])
def test_a_pipe_that_cannot_be_enlarged_is_not_kept(
    join: JoinWay, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(splicing, "PIPE_SIZE", size)
    _, sender, receiver = join(("TCP", "Unix"))
    before = processes.open_files(os.getpid())
    for _ in range(3):
        _pass_a_piece(sender, receiver)
    assert processes.open_files(os.getpid()) == before


@pytest.mark.hybrid_only
def test_a_user_whose_pipes_have_used_up_their_pages_gets_no_small_pipe() -> None:
    answer = _as_ordinary_user(_open_pipe_without_pages)
    if answer == NO_LIMIT:
        pytest.skip(NO_LIMIT)
    assert answer == os.strerror(errno.ENOBUFS)


def _as_ordinary_user(function: Callable[[], str]) -> str:
    """What a function returns in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if os.geteuid() == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, function().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(pid, 0)
    return text


def _open_pipe_without_pages() -> str:
    """What is said at the limit fs.pipe-user-pages-soft."""
    for _ in range(200):
        _, writer = os.pipe()
        try:
            fcntl.fcntl(writer, kernel.F_SETPIPE_SZ, MIB)
        except PermissionError:
            break
    else:
        return NO_LIMIT
    try:
        splicing.Pipe(*socket.socketpair())
    except OSError as error:
        return str(error.strerror)
    return "a pipe"


@needs_refusal
def test_a_proxy_that_may_not_splice_serves_all_the_same(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    sandbox = [sys.executable, "-m", "tests.support.seccomp", "splice", "EPERM"]
    proxy = start_proxy(start_server(), workers=1, wrapper=sandbox)
    with proxy.connect() as client:
        assert exchange(client, CONTENT * 8) == CONTENT * 8
    proxy.log.wait_for(f"{8 * MIB} bytes up, {8 * MIB} bytes down, .* client closed")
