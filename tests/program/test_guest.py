"""The program in the root of a guest, in which there is nothing but a Python and the program.

No setproctitle, no /proc, no /dev, no shell, no name server, an empty environment, nothing that can
be written to. And of the standard library nothing that asks for more than a C library.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.program import PROJECT, Proxy, Transport
from tests.support.root import Root, why_no_root
from tests.support.servers import Server, exchange
from tests.support.timing import SLOWNESS, let_pass, wait_until

pytestmark = pytest.mark.skipif(bool(why_no_root()), reason=why_no_root() or "can be")
# Modules in C that an image may lack: those that need a library of their own, and those for what
# the smallest guest lacks, such as shared memory by name.
NEEDLESS = (
    *("_bz2", "_ctypes", "_curses*", "_dbm", "_gdbm", "_hashlib", "_lzma", "_sqlite3", "_ssl"),
    *("_uuid", "nis", "readline", "zlib"),
    *("_multiprocessing", "_posixshmem", "_posixsubprocess"),
)
# The file of a forwarder, and a program that knows only TCP.
SERVICES = "- {{listen: 443, listen_tcp: 127.0.0.1, address: '{0}', port: {1}}}"
CLIENT = """
import socket, time
while True:
    try:
        sock = socket.create_connection(("127.0.0.1", 443))
        break
    except ConnectionRefusedError:
        time.sleep(0.01)
sock.sendall(b"hello")
print(sock.makefile().read(5))
"""
LOOKUP = "import socket; print(socket.gethostbyname('endpoint.test'))"
WITHOUT_DESCRIPTORS = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"]
WORKERS = 4


@pytest.fixture(scope="module")
def root() -> Iterator[Root]:
    """A guest's root."""
    with tempfile.TemporaryDirectory(prefix="test-guest-") as folder:
        made = Root(Path(folder))
        for name in NEEDLESS:
            for module in made.folder.rglob(f"lib-dynload/{name}.*so"):
                module.unlink()
        yield made


@pytest.fixture
def start_in_guest(root: Root, start_proxy: StartProxy, tmp_path: Path) -> StartProxy:
    """Starts the program in it, where only the folder of the test can be written to."""

    def start(*arguments: object, before: Sequence[str] = (), **process: object) -> Proxy:
        wrapper = [*before, *root.inside(tmp_path)]
        return start_proxy(*arguments, wrapper=wrapper, program=root.program, **process)

    return start


def try_to_connect(transport: Transport) -> Optional[socket.socket]:
    """A client's connection, as soon as there can be one."""
    try:
        return transport.connect()
    except OSError:
        return None


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_root_has_no_more_than_it_should_and_nothing_can_be_written(root: Root) -> None:
    script = """
import glob, os
print(*sorted(os.listdir("/")), *os.environ)
print(*glob.glob("/bin/*"), *glob.glob("/usr/bin/*"))
try:
    os.mkdir("/new")
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [*root.inside(), root.python, "-I", "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    listed, programs, problem = done.stdout.splitlines()
    assert not {"dev", "etc", "proc", "run", "sys", "tmp"} & set(listed.split())
    # Debian's own interpreter is in /usr, so the root has that too.
    assert {Path(program).name[:6] for program in programs.split()} == {"python"}
    assert problem == "Read-only file system"


def test_connections_are_served_and_no_line_says_that_anything_is_missing(
    start_in_guest: StartProxy, start_server: StartServer
) -> None:
    proxy = start_in_guest(start_server())
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
    proxy.log.wait_for(" ended: 1 bytes up, 1 bytes down")
    assert len(proxy.log.lines) == 2
    assert len(proxy.log.matching(" info ")) == 2


@pytest.mark.hybrid_only  # no transport has a part in it
def test_at_level_debug_one_line_says_what_is_missing(
    start_in_guest: StartProxy, start_server: StartServer
) -> None:
    proxy = start_in_guest(start_server(), "--log-level", "debug")
    (line,) = proxy.log.matching(" debug ")
    assert line.endswith(
        "processes have no titles: cannot use setproctitle: No module named 'setproctitle'"
    )


@pytest.mark.hybrid_only  # no transport has a part in it
def test_without_standard_descriptors_it_serves_and_rests_when_idle(
    start_in_guest: StartProxy, start_server: StartServer, transport: Transport
) -> None:
    proxy = start_in_guest(start_server(), before=WITHOUT_DESCRIPTORS, ready=False)
    with wait_until(lambda: try_to_connect(transport), "it listens") as client:
        assert exchange(client, b"x") == b"x"
    wait_until(lambda: len(proxy.children()) == WORKERS, "all run")
    pids = [proxy.pid, *proxy.children()]
    wakings = sum(map(processes.context_switches, pids))
    let_pass(1, why="lines that cannot be written are tried again twice, and no more")
    assert sum(map(processes.context_switches, pids)) - wakings <= 5


@pytest.mark.hybrid_only  # no transport has a part in it
def test_signals_are_obeyed(
    start_in_guest: StartProxy, start_server: StartServer, write_allowlist: Callable[..., Path]
) -> None:
    server = start_server()
    proxy = start_in_guest(server)
    write_allowlist((server.host, server.port), ("192.0.2.1", 443))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("info master: allowlist read again")
    proxy.send(signal.SIGUSR1)
    proxy.log.wait_for(r"info master: .*\bidle\b", count=4)
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK
    assert not proxy.log.matching("warning|error|Traceback")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_worker_that_is_killed_is_replaced(
    start_in_guest: StartProxy, start_server: StartServer
) -> None:
    proxy = start_in_guest(start_server(), workers=1)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        for pid in proxy.children():
            os.kill(pid, signal.SIGKILL)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_without_a_name_server_the_log_says_that_a_name_does_not_resolve(
    start_in_guest: StartProxy,
) -> None:
    proxy = start_in_guest(("endpoint.test", 443), "--connect-timeout", "0.1")
    proxy.log.wait_for("warning resolver: endpoint.test does not resolve: .*; clients wait until")
    with proxy.connect() as client:
        assert client.recv(1) == b""
    proxy.log.wait_for("cannot connect to endpoint.test:443: the endpoint's name does not resolve")


@pytest.fixture
def parent(request: pytest.FixtureRequest, transport: Transport) -> Server:
    """What listens in the guest's parent, on vsock or, in its place, behind a VMM."""
    kind = "start_vsock_server" if transport.name == "vsock" else "start_vmm"
    start: StartServer = request.getfixturevalue(kind)
    return start()


@pytest.fixture
def example(root: Root, parent: Server) -> List[str]:
    """The command by which the example starts a program in a guest, with a forwarder."""
    root.put(PROJECT / "etc" / "guest" / "start", "/start")
    file = root.within("/etc/nitro_enclaves/vsock-proxy.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"allowlist: [{{address: '{parent.host}', port: {parent.port}}}]\n"
        f"services:\n{SERVICES.format(parent.host, parent.port)}\n"
    )
    return [root.python, "/start", root.python, "-I", "-c"]


def in_its_own_machine(*command: str) -> str:
    """What a command prints that is process 1, and has a loopback interface that is down."""
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--kill-child", *command],
        capture_output=True,
        text=True,
        timeout=20 * SLOWNESS,
        check=False,
    )
    print(done.stderr)
    return done.stdout


def test_a_guest_that_starts_by_the_example_reaches_its_parent_by_tcp(
    root: Root, example: List[str], tmp_path: Path
) -> None:
    assert in_its_own_machine(*root.inside(tmp_path), *example, CLIENT) == "hello\n"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_guest_that_starts_by_the_example_knows_the_names_of_its_hosts(
    root: Root, example: List[str]
) -> None:
    hosts = root.within("/opt/hosts")
    hosts.write_text("127.0.0.7 endpoint.test\n")
    # Not read-only.
    assert in_its_own_machine("chroot", str(root.folder), *example, LOOKUP) == "127.0.0.7\n"
    hosts.unlink()
    root.within("/etc/hosts").unlink()
