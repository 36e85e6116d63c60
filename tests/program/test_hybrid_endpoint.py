"""Endpoints behind a VMM: `unix:PATH`, over the real program and real sockets.

What a worker does for its client and its master while it waits for a VMM is in test_connecting.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import threading
from pathlib import Path
from typing import List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import answers, end_of, failure
from tests.support.servers import (
    Handler,
    UnixServer,
    answer_at_the_end,
    exchange,
    only_hearing,
    read_all,
    read_exactly,
)
from tests.support.timing import SLOWNESS, wait_until
from tests.support.vmm import CloudHypervisor, Firecracker
from vsock_proxy.serving.hybrid_upstream import HybridUpstream
from vsock_proxy.serving.presence import Presence
from vsock_proxy.serving.race import ConnectFailed
from vsock_proxy.serving.waiting import Meanwhile
from vsock_proxy.settings import Endpoint

MEBIBYTE = 1 << 20
REFUSED = "cannot connect to .*: refused by the VMM"


def says(*parts: bytes) -> Handler:
    """A VMM that answers so, in several packets, whatever it is asked, and goes."""

    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        read_line(connection)
        for part in parts:
            connection.sendall(part)
        connection.close()

    return handle


def read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += read_exactly(connection, 1)
    return line


# The handshake


def test_a_guest_is_reached_through_its_vmm(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy(start_vmm())
    with proxy.connect() as client:
        assert exchange(client, b"hello") == b"hello"


def test_the_vmm_is_asked_for_the_port_in_one_line(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    requests: List[bytes] = []

    def note(connection: socket.socket) -> None:
        requests.append(read_line(connection))
        connection.close()

    failure(start_proxy(start_vmm(note, UnixServer)))
    assert requests == [b"CONNECT 5000\n"]


def test_the_vmm_is_sent_nothing_of_the_client_before_its_answer(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    seen: List[bytes] = []

    def late(connection: socket.socket) -> None:
        read_line(connection)
        connection.settimeout(0.3)
        # Python 3.9 has it apart from TimeoutError.
        with pytest.raises(socket.timeout):
            connection.recv(1)
        connection.settimeout(None)
        connection.sendall(b"OK 1\n")
        seen.append(read_exactly(connection, 5))
        connection.close()

    proxy = start_proxy(start_vmm(late, UnixServer))
    with proxy.connect() as client:
        client.sendall(b"words")
        assert end_of(client) == b""
    assert seen == [b"words"]


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    "parts",
    [
        (b"OK 1073741824\n", b"a guest's first words"),
        (b"OK 1073741824\na guest's first words",),
        (b"OK 4294967295\na", b" guest's first words"),
        (b"O", b"K", b" 0", b"\n", b"a guest's first words"),
        (b"OK 7", b"\na guest's first words"),
        (b"OK 7\n", b"\nOK 8\n"),
        (b"OK 7\n\n",),
    ],
    ids=ascii,
)
def test_what_follows_the_answer_is_the_guests_to_the_byte(
    parts: tuple[bytes, ...], start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy(start_vmm(says(*parts), UnixServer))
    with proxy.connect() as client:
        assert read_all(client) == b"".join(parts).split(b"\n", 1)[1]


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b"ERROR\n", "said 'ERROR\\n'"),
        (b"OK\n", "said 'OK\\n'"),
        (b"OK \n", "said 'OK \\n'"),
        (b"OK x\n", "said 'OK x\\n'"),
        (b"OK 1\r\n", "said 'OK 1\\r\\n'"),
        (b"OK 1 2\n", "said 'OK 1 2\\n'"),
        (b"OK -1\n", "said 'OK -1\\n'"),
        (b"ok 1\n", "said 'ok 1\\n'"),
        (b"OK 12345678901\n", "said 'OK 12345678901\\n'"),
        (b"\n", "said '\\n'"),
        (b" OK 1\n", "said ' OK 1\\n'"),
        # It ends before its line does.
        (b"OK 1", "said 'OK 1'"),
        # No terminal is to be told anything by it, and no line to be forged.
        (b"\x1b[2J\x00\xff\n", "said '\\x1b[2J\\x00\\xff\\n'"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "said 'SSH-2.0-OpenSSH_9.2p1\\r\\n'"),
        # As much as is read.
        (b"x" * 64 + b"\n", f"said '{'x' * 64}'"),
        (b"x" * MEBIBYTE, f"said '{'x' * 64}'"),
        (b"OK " + b"0" * 61 + b"\n", f"said 'OK {'0' * 61}'"),
        (b"", "closed the connection; does the guest listen on vsock port 5000?"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_other_answer_is_a_refusal_and_is_shown_escaped(
    answer: bytes, shown: str, start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy(start_vmm(says(answer), UnixServer))
    assert failure(proxy).endswith(f":5000: refused by the VMM, which {shown}")


def test_a_vmm_that_resets_the_connection_has_refused_it(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    # A Unix socket that is closed with something unread resets.
    proxy = start_proxy(start_vmm(lambda connection: connection.close(), UnixServer))
    assert re.search(
        r"refused by the VMM, which closed the connection( \((Broken pipe|Connection reset by "
        r"peer)\))?; does the guest listen on vsock port 5000\?$",
        failure(proxy),
    )


def test_a_port_on_which_the_guest_does_not_listen_is_refused(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy((start_vmm().host, 5001))
    assert failure(proxy).endswith(
        ":5001: refused by the VMM, which closed the connection; does the guest listen on vsock "
        "port 5001?"
    )


@pytest.mark.hybrid_only  # no transport has a part in it
def test_part_of_an_answer_is_not_waited_on_for_longer_than_the_rest(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    def drip(connection: socket.socket) -> None:
        read_line(connection)
        connection.sendall(b"OK ")

    proxy = start_proxy(start_vmm(drip, UnixServer), "--connect-timeout", "0.3")
    assert failure(proxy).endswith("no answer in time from the VMM, which said 'OK '")


def test_a_vmm_whose_queue_is_full_gets_the_client_once_there_is_room(
    tmp_path: Path, start_proxy: StartProxy
) -> None:
    path = str(tmp_path / "vm")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        proxy = start_proxy((f"unix:{path}", 5000), workers=1)
        with proxy.connect() as client:
            client.sendall(b"x")
            proxy.wait_for_workers(1, "connecting [")
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                assert read_line(connection) == b"CONNECT 5000\n"
                connection.sendall(b"OK 1\nwelcome")
                assert read_exactly(client, 7) == b"welcome"
                assert read_exactly(connection, 1) == b"x"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_of_any_answer_no_byte_behind_its_line_is_lost(tmp_path: Path) -> None:
    chance = random.Random(14)
    meanwhile = Meanwhile(os.open("/dev/null", os.O_RDONLY), lambda: None, lambda: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vm"))
        listener.listen()
        upstream = HybridUpstream(Endpoint(f"unix:{tmp_path}/vm", 5000), 20 * SLOWNESS)
        for _ in range(300):
            pieces = (b"OK ", b"1073741824", b"7", b"\n", b"OK 1\n", b"\r", b"\0", b"x" * 30, b" ")
            answer = b"".join(chance.choices(pieces, k=chance.randrange(8)))
            thread = threading.Thread(target=answer_one, args=(listener, answer, chance.random()))
            thread.start()
            line, _, rest = answer.partition(b"\n")
            near, far = socket.socketpair()
            with near, far:
                if re.fullmatch(rb"OK [0-9]{1,10}\n", answer[: len(line) + 1]):
                    sock, _, said = upstream.connect(near, Presence.SILENT, meanwhile)
                    thread.join()
                    came = said + b"".join(iter(lambda sock=sock: sock.recv(3), b""))  # type: ignore[misc]
                    assert came == rest
                    sock.close()
                else:
                    with pytest.raises(ConnectFailed) as caught:
                        upstream.connect(near, Presence.SILENT, meanwhile)
                    thread.join()
                    assert str(caught.value).startswith("refused by the VMM, which ")
                    assert str(caught.value).isprintable()
    os.close(meanwhile.lifeline)


def answer_one(listener: socket.socket, answer: bytes, part: float) -> None:
    """In two packets, at the most."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(ConnectionError):
        read_line(connection)
        cut = int(part * len(answer))
        connection.sendall(answer[:cut])
        connection.sendall(answer[cut:])


# Relaying


def test_much_passes_both_ways_at_the_same_time(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy(start_vmm())
    data = os.urandom(8 * MEBIBYTE)
    with proxy.connect() as client:
        assert exchange(client, data) == data


def test_an_end_of_the_client_is_passed_on_and_the_answer_still_comes(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy(start_vmm(answer_at_the_end, CloudHypervisor))
    with proxy.connect() as client:
        client.sendall(b"words")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"you said words"


def test_an_end_of_the_client_ends_all_where_the_vmm_takes_it_for_that(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy(start_vmm(answer_at_the_end, Firecracker), workers=1)
    with proxy.connect() as client:
        client.sendall(b"words")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    proxy.log.wait_for(" ended: 5 bytes up, 0 bytes down, .*, client closed$")
    proxy.wait_for_workers(1, "idle")


def test_an_end_of_the_guest_is_passed_on_and_the_client_still_heard(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    heard: List[bytes] = []
    proxy = start_proxy(start_vmm(only_hearing(heard), CloudHypervisor))
    with proxy.connect() as client:
        assert client.recv(1) == b""
        client.sendall(b"words")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: heard == [b"words"], "they arrive")


def test_a_half_close_that_the_vmm_hides_waits_until_the_guest_closes(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    def listen(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        read_exactly(connection, 5)
        connection.close()

    proxy = start_proxy(start_vmm(listen, Firecracker))
    with proxy.connect() as client:
        assert read_exactly(client, 3) == b"bye"
        client.sendall(b"words")
        assert client.recv(1) == b""
    proxy.log.wait_for(" ended: 5 bytes up, 3 bytes down, .*, endpoint closed$")


def test_a_vmm_that_dies_ends_its_connections(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    server = start_vmm(lambda connection: connection.sendall(b"x"))
    proxy = start_proxy(server)
    with proxy.connect() as client:
        assert client.recv(1) == b"x"
        server.close()
        assert end_of(client) == b""
    proxy.log.wait_for(r" ended: 0 bytes up, 1 bytes down, .*, endpoint closed$")


# What is seen of it


def test_the_log_the_titles_and_the_table_give_an_endpoint_the_same_name(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    server = start_vmm()
    name = f"{server.host}:5000"
    proxy = start_proxy(server, workers=1)
    assert proxy.log.matching(f" -> {name}, 1 worker$")
    wait_until(lambda: processes.title(proxy.pid).endswith(f" -> {name}"), "the master's title")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        (worker,) = proxy.wait_for_workers(1, " -> ")
        assert processes.title(worker).endswith(f" -> {name}]")
        assert [row.endpoint for row in board.ask(proxy)] == [name]
    proxy.log.wait_for(f" -> {name} ended: 1 bytes up")


def test_a_worker_that_dies_with_such_a_connection_leaves_its_line(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    server = start_vmm()
    proxy = start_proxy(server, workers=1)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        os.kill(proxy.workers()[0], signal.SIGKILL)
        assert end_of(client) == b""
    proxy.log.wait_for(f" -> {server.host}:5000 ended: 1 bytes up, .* worker died$")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_what_fails_is_counted_by_its_cause(
    tmp_path: Path, start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy((f"unix:{tmp_path}/vm", 5001))
    failure(proxy)
    start_vmm()
    failure(proxy)
    wait_until(
        lambda: "2 failed (1 refused, 0 timed out, 1 unreachable," in board.totals_now(proxy),
        "both count",
    )


def test_nothing_is_left_open_by_connections_that_fail(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy((start_vmm().host, 5001), workers=1)
    (worker,) = proxy.wait_for_workers(1, "idle")
    before = processes.open_files(worker)
    for _ in range(20):
        assert not answers(proxy)
    proxy.log.wait_for(REFUSED, count=20)
    proxy.wait_for_workers(1, "idle")
    assert processes.open_files(worker) == before


@pytest.mark.hybrid_only  # no transport has a part in it
def test_there_is_no_resolver_for_it(start_proxy: StartProxy, start_vmm: StartServer) -> None:
    proxy = start_proxy(start_vmm(), workers=2)
    assert answers(proxy)
    assert len(proxy.children()) == 2
