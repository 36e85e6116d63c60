"""The first moments: descriptors that are closed, signals that come, output that fails."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, List, Sequence

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.dns import Mood, NameServer
from tests.support.json_log import JSON
from tests.support.namespaces import RESOLV_CONF, Namespace, needs_namespace
from tests.support.program import PROJECT, Proxy, Transport, command
from tests.support.servers import Server, exchange, silent
from tests.support.timing import AT_ONCE, SLOWNESS, wait_until
from tests.support.transports import Hybrid

ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
WAITS = [signal.SIGHUP, signal.SIGUSR1]
NAME = "kms.{region}.amazonaws.com"


def without_descriptors(*numbers: int) -> List[str]:
    """What to put before a command to start it with these closed."""
    closing = " ".join(f"{number}<&-" for number in numbers)
    return ["sh", "-c", f'exec "$@" {closing}', "sh"]


# Descriptors 0, 1 and 2


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    "closed",
    [numbers for count in (1, 2, 3) for numbers in itertools.combinations(range(3), count)],
    ids=str,
)
def test_standard_descriptors_that_are_closed_at_the_start_are_dev_null(
    start_proxy: StartProxy, start_server: StartServer, closed: Sequence[int]
) -> None:
    proxy = start_proxy(start_server(), wrapper=without_descriptors(*closed), ready=False)
    workers = proxy.wait_for_workers(4, "idle")
    for pid, number in itertools.product([proxy.pid, *workers], closed):
        assert os.readlink(f"/proc/{pid}/fd/{number}") == os.devnull
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_a_closed_descriptor_is_taken_even_without_dev_null(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@" 2<&-', "sh"]
    proxy = start_proxy(start_server(), wrapper=hidden, ready=False)
    for pid in proxy.wait_for_workers(4, "idle"):
        assert os.readlink(f"/proc/{pid}/fd/2") == "/"


# Signals while the start waits


@pytest.fixture
def metadata_that_hang(start_server: StartServer) -> Server:
    """A metadata service that accepts and never answers."""
    return start_server(silent)


@pytest.fixture
def start_waiting(
    start_proxy: StartProxy, write_allowlist: Callable[..., Path], metadata_that_hang: Server
) -> Callable[..., Proxy]:
    """Starts a proxy that waits for the instance metadata."""

    def start(wrapper: Sequence[str] = ()) -> Proxy:
        proxy = start_proxy(
            (NAME, 443),
            wrapper=wrapper,
            ready=False,
            config=write_allowlist(("*.amazonaws.com", 443)),
            environment={
                **os.environ,
                "VSOCK_PROXY_IMDS_ENDPOINT": f"http://127.0.0.1:{metadata_that_hang.port}",
            },
        )
        metadata_that_hang.wait_for_connections(1)
        return proxy

    return start


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_a_signal_ends_a_start_that_waits_for_metadata_at_once(
    start_waiting: Callable[..., Proxy], number: signal.Signals
) -> None:
    proxy = start_waiting()
    proxy.send(number)
    assert proxy.wait(timeout=AT_ONCE) == os.EX_OK
    proxy.log.join()
    assert proxy.log.lines[-1].endswith("told to end before the start was complete")
    assert not proxy.log.matching("Traceback")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_killed_question_for_metadata_is_one_line_and_exit_code_75(
    start_waiting: Callable[..., Proxy],
) -> None:
    proxy = start_waiting()
    for pid in proxy.children():
        os.kill(pid, signal.SIGKILL)
    assert proxy.wait() == os.EX_TEMPFAIL
    proxy.log.wait_for(
        r"no instance metadata for .region.: the process that asks for it: ended by signal 9 "
    )


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("number", WAITS, ids=lambda number: number.name)
def test_while_metadata_are_awaited_another_signal_waits(
    start_waiting: Callable[..., Proxy], metadata_that_hang: Server, number: signal.Signals
) -> None:
    proxy = start_waiting()
    proxy.send(number)
    # It goes on asking.
    metadata_that_hang.wait_for_connections(2)
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_process_1_ends_at_once_while_metadata_are_awaited(
    start_waiting: Callable[..., Proxy],
) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    proxy = start_waiting(wrapper=unshare)
    began = time.monotonic()
    os.kill(processes.children(proxy.pid)[0], signal.SIGTERM)
    assert proxy.wait() == os.EX_OK
    assert time.monotonic() - began < AT_ONCE * SLOWNESS


@pytest.fixture
def resolv_conf() -> str:
    return RESOLV_CONF


@pytest.fixture
def silent_dns(network: Namespace) -> Iterator[NameServer]:
    """A name server that never answers."""
    name_server = network.call(NameServer)
    name_server.mood = Mood.SILENT
    yield name_server
    name_server.close()


@pytest.fixture
def start_judging(
    network: Namespace,
    silent_dns: NameServer,
    start_proxy: StartProxy,
    write_allowlist: Callable[..., Path],
) -> Callable[[], Proxy]:
    """Starts a proxy that waits for DNS, since only an address can permit its endpoint."""

    def start() -> Proxy:
        proxy = start_proxy(
            ("endpoint.test", 443),
            config=write_allowlist(("192.0.2.1", 443)),
            wrapper=network.wrapper,
            ready=False,
        )
        silent_dns.wait_for_questions(1)
        return proxy

    return start


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_a_signal_ends_a_start_that_waits_for_dns_at_once(
    start_judging: Callable[[], Proxy], number: signal.Signals
) -> None:
    proxy = start_judging()
    children = proxy.children()
    proxy.send(number)
    assert proxy.wait(timeout=AT_ONCE) == os.EX_OK
    for pid in children:
        wait_until(lambda pid=pid: processes.state(pid) is None, f"process {pid} is gone", AT_ONCE)  # type: ignore[misc]


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_a_killed_lookup_at_the_start_is_one_line_and_exit_code_75(
    start_judging: Callable[[], Proxy],
) -> None:
    proxy = start_judging()
    for pid in proxy.children():
        os.kill(pid, signal.SIGKILL)
    assert proxy.wait() == os.EX_TEMPFAIL
    proxy.log.wait_for(
        r"endpoint\.test does not resolve: the process that looks it up ended by signal 9 "
    )


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_signal_that_waited_for_the_end_of_the_start_is_obeyed_then(
    start_proxy: StartProxy, start_server: StartServer, transport: Hybrid, tmp_path: Path
) -> None:
    """The start waits for a writer of the pipe that it was given for an allowlist."""
    server = start_server()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = ["sh", "-c", f'exec "$@" 9<{fifo}', "sh"]
    proxy = start_proxy(server, wrapper=reader, config=Path("/dev/fd/9"), ready=False)
    with fifo.open("w") as file:
        wait_until(lambda: opened(proxy.pid, fifo), "the program has opened it")
        proxy.send(signal.SIGUSR1)
        file.write(f"allowlist:\n- {{address: {server.host}, port: {server.port}}}\n")
    proxy.wait_ready()
    proxy.log.wait_for("info master: 0 connections served")


def opened(pid: int, fifo: Path) -> bool:
    """Whether a process has opened the pipe beside the descriptor that it was given."""
    return processes.file_names(pid).count(str(fifo)) == 2


# Signals without a meaning


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO),
        *(signal.SIGPWR, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE, signal.SIGURG, 16),
        *(signal.SIGRTMIN, signal.SIGRTMIN + 7, signal.SIGRTMAX),
    ],
    ids=int,
)
def test_a_signal_without_a_meaning_changes_nothing(
    start_proxy: StartProxy, start_server: StartServer, number: int
) -> None:
    proxy = start_proxy(start_server())
    workers = proxy.wait_for_workers(4, "idle")
    for pid in (proxy.pid, *workers):
        os.kill(pid, number)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
    assert proxy.wait_for_workers(4) == workers


BLOCKING_ALL = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.hybrid_only  # no transport has a part in it
def test_signals_that_were_blocked_at_the_start_are_blocked_no_more(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    # A worker looks after a lasting connection at SIGALRM.
    proxy = start_proxy(start_server(), wrapper=[sys.executable, "-c", BLOCKING_ALL])
    for pid in (proxy.pid, *proxy.wait_for_workers(4, "idle")):
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^SigBlk:\s0{16}$", status, re.MULTILINE)


# Output that cannot be written


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("option", ["--version", "--help"])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "Bad file descriptor"),
        ("| true", "Broken pipe"),
    ],
    ids=["full", "closed", "pipe"],
)
def test_output_that_cannot_be_written_is_one_line_and_exit_code_74(
    option: str, redirection: str, reason: str
) -> None:
    # The reader of the pipe must have ended before the program writes.
    script = f'(sleep 0.2; "$@" {option}; echo $? >&3) {redirection}'
    if not redirection.startswith("|"):
        script = f'"$@" {option} {redirection}; echo $? >&3'
    reader, writer = os.pipe()
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&{writer}; {script}", "bash", *command()],
        cwd=PROJECT,
        pass_fds=[writer],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    with open(reader) as status:
        assert int(status.read()) == os.EX_IOERR
    assert done.stderr == f"vsock-proxy: cannot write to the standard output: {reason}\n"


# Too few descriptors


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("held", range(38, 62, 2))
def test_with_few_descriptors_it_serves_or_ends_with_one_line(
    start_proxy: StartProxy, start_server: StartServer, transport: Transport, held: int
) -> None:
    opening = "".join(f"exec {number}</dev/null; " for number in range(10, 10 + held))
    few = ["prlimit", "--nofile=70:70", "bash", "-c", f'{opening} exec "$@"', "bash"]
    proxy = start_proxy(start_server(), workers=2, wrapper=few, ready=False)
    wait_until(
        lambda: proxy.has_ended() or proxy.log.matching(r"2 workers$"), "an end or a beginning"
    )
    if proxy.has_ended():
        assert proxy.wait() == os.EX_UNAVAILABLE
        assert "Too many open files" in proxy.log.only_line()
        assert not isinstance(transport, Hybrid) or not transport.path.exists()
    else:
        assert not proxy.log.matching("Traceback")


# A start that fails


@pytest.mark.hybrid_only
@pytest.mark.parametrize("options", [(), JSON], ids=["text", "json"])
def test_the_journal_gets_the_reason_of_a_failed_start_as_an_error(
    options: Sequence[str], tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    with path.open("wb") as file:
        stat = os.fstat(file.fileno())
        ended = subprocess.run(
            command("--config", "/nonexistent", *options, "8000", "h", "1"),
            cwd=PROJECT,
            env={**os.environ, "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"},
            stderr=file,
            check=False,
        )
    assert ended.returncode == os.EX_CONFIG
    (line,) = path.read_text().splitlines()
    assert line.startswith("<3>")
    assert "/nonexistent: No such file or directory" in line
