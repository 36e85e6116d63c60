"""Who holds a place: found by what the kernel says of sockets, and by what processes have open."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, Tuple

import pytest

from vsock_proxy.process import holders

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

# As the kernel writes them (get_tcp4_sock(), get_tcp6_sock(), unix_seq_show()), on a machine whose
# words begin with their low byte; `address` puts the words into the order of this one.
TCP_TAIL = "00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1"


def address(packed: bytes) -> str:
    words = [packed[place : place + 4] for place in range(0, len(packed), 4)]
    return "".join(f"{struct.unpack('=I', word)[0]:08X}" for word in words)


def tcp(host: str, port: int, inode: int, state: str = "0A") -> str:
    """A line of /proc/net/tcp or tcp6."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    local = f"{address(socket.inet_pton(family, host))}:{port:04X}"
    return f"   0: {local} {TCP_TAIL.format(state=state, inode=inode)}"


LISTENING = [tcp("127.0.0.1", 80, 1), tcp("127.0.0.2", 80, 2), tcp("127.0.0.1", 81, 3)]
TCP = {
    "the same address": (LISTENING, "127.0.0.1", {1}),
    "another one": (LISTENING, "127.0.0.3", set()),
    "all of IPv4 are asked for": (LISTENING, "0.0.0.0", {1, 2}),
    "all are asked for": (LISTENING, "::", {1, 2}),
    "all of IPv4 are taken": ([tcp("0.0.0.0", 80, 4)], "127.0.0.1", {4}),
    "all are taken": ([tcp("::", 80, 5)], "127.0.0.1", {5}),
    "IPv6": ([tcp("::1", 80, 6), tcp("::2", 80, 7)], "::1", {6}),
    "IPv4 written as IPv6": ([tcp("::ffff:127.0.0.1", 80, 9)], "127.0.0.1", {9}),
    "all of IPv4 are not in the way of IPv6": ([tcp("0.0.0.0", 80, 4)], "::1", set()),
    "a connection": ([tcp("127.0.0.1", 80, 10, "01")], "127.0.0.1", {10}),
    "a connection beside": ([tcp("127.0.0.1", 80, 10, "01"), *LISTENING], "127.0.0.1", {1}),
    "what no process has": ([tcp("127.0.0.1", 80, 0, "06")], "127.0.0.1", set()),
    "what cannot be read": (["", "sl  local_address", "x: y", tcp("::", 8, 1)[:40]], "::", set()),
}


@pytest.mark.parametrize(("lines", "host", "inodes"), TCP.values(), ids=TCP.keys())
def test_the_sockets_that_have_a_tcp_port(lines: list[str], host: str, inodes: set[int]) -> None:
    assert holders._tcp_inodes(lines, [], host, 80) == inodes
    assert holders._tcp_inodes([], lines, host, 80) == inodes


def test_the_sockets_that_listen_on_a_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    lines = [
        f"0000000000000000: 00000002 00000000 00010000 0001 01    11 {tmp_path}/v_80",
        f"0000000000000000: 00000003 00000000 00000000 0001 03    12 {tmp_path}/v_80",
        f"0000000000000000: 00000002 00000000 00010000 0001 01    13 {tmp_path}/link/v_80",
        f"0000000000000000: 00000002 00000000 00010000 0001 01    14 {tmp_path}/v_81",
        "0000000000000000: 00000002 00000000 00010000 0001 01    15",
        "0000000000000000: 00000002 00000000 00010000 0001 01    16 @abstract",
    ]
    assert holders._unix_inodes(lines, f"{tmp_path}/v_80") == {11, 13}


def test_the_sockets_that_listen_on_a_vsock_port() -> None:
    def message(state: int, port: int, inode: int) -> bytes:
        # vsock_diag_msg of linux/vm_sockets_diag.h.
        fixed = struct.pack("=BBBB", 40, 1, state, 0)
        return fixed + struct.pack("=IIIIIII", 0xFFFFFFFF, port, 0, 0, inode, 0, 0)

    answers = [message(10, 8000, 21), message(1, 8000, 22), message(10, 8001, 23)]
    assert holders._vsock_inodes(answers, 8000) == {21}


# With real sockets


@pytest.fixture
def other_process() -> Iterator[Callable[[str], Tuple[int, str]]]:
    """Starts a process that runs some Python and says a line, then waits; its pid and the line."""
    started = []

    def start(code: str) -> Tuple[int, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os, socket, sys\n{code}\nsys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process.pid, process.stdout.readline().rstrip("\n")

    yield start
    for process in started:
        process.communicate()


Start = Callable[[str], Tuple[int, str]]
LISTEN = "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"


def test_another_process_is_found_by_its_name_and_pid(other_process: Start) -> None:
    pid, port = other_process(f"open('/proc/self/comm', 'w').write('some server')\n{LISTEN}")
    assert holders.holder_of_tcp("127.0.0.1", int(port)) == ("some server", pid)
    assert holders.holder_of_tcp("0.0.0.0", int(port)) == ("some server", pid)
    assert holders.holder_of_tcp("127.0.0.2", int(port)) is None


def test_of_a_process_and_its_child_the_process_is_found(other_process: Start) -> None:
    fork = "r, w = os.pipe()\nif not os.fork():\n    os.close(w); os.read(r, 1); os._exit(0)"
    server, say = LISTEN.split(";")
    pid, port = other_process(f"{server}\n{fork}\n{say.strip()}")
    found = holders.holder_of_tcp("127.0.0.1", int(port))
    assert found is not None
    assert found.pid == pid


def test_a_free_place_has_no_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert holders.holder_of_tcp("127.0.0.1", port) is None
    assert holders.holder_of_unix(str(tmp_path / "v")) is None
