"""Nobody waits for the log, and what could not be written is told."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import signal
import subprocess
import termios
from pathlib import Path
from typing import Callable, Iterator, List, Sequence

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import logs, processes
from tests.support.clients import answers
from tests.support.logs import Sink
from tests.support.namespaces import WITHOUT_PROC, needs_namespace
from tests.support.program import PROJECT, Proxy, command
from tests.support.servers import exchange
from tests.support.timing import SLOWNESS, let_pass, wait_until

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

WHOLE_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (info|warning|error|debug) \S[^:]*: .*")
NOT_WRITTEN = r"warning master: (\d+) lines? of the log could not be written: (.*)$"
CONNECTIONS = 60
LOG_PROCESS = "vsock-proxy: log"

MakeSink = Callable[[str], Sink]
kinds = pytest.mark.parametrize("kind", logs.KINDS)


@pytest.fixture
def make_sink(tmp_path: Path) -> Iterator[MakeSink]:
    """Makes a place for a log, of a kind."""
    with contextlib.ExitStack() as stack:

        def make(kind: str) -> Sink:
            sink = logs.KINDS[kind](tmp_path)
            stack.callback(sink.close)
            return sink

        yield make


def started(start_proxy: StartProxy, server: object, sink: Sink, *options: str) -> Proxy:
    """A proxy with two workers whose log goes there."""
    proxy = start_proxy(server, *options, workers=2, ready=False, stderr=sink.writer)
    proxy.wait_for_workers(2, "idle")
    return proxy


def wait_for_first_line(path: Path) -> None:
    """Wait until a log says that the proxy serves, which it does once its workers are idle."""
    wait_until(lambda: path.read_text().endswith(" workers\n"), "the first line")


def lines_of(data: bytearray) -> List[str]:
    return data.decode().splitlines()


@kinds
def test_a_log_that_cannot_be_written_delays_neither_clients_nor_the_end(
    kind: str, make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink(kind)
    sink.fill()
    proxy = started(start_proxy, start_server(), sink)
    for _ in range(CONNECTIONS):
        assert answers(proxy)
    for _ in range(3):
        proxy.send(signal.SIGUSR1)
    assert answers(proxy)
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=3) == os.EX_OK


@kinds
def test_one_line_says_how_many_are_lost_once_the_log_is_read_again(
    kind: str, make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink(kind)
    filled = sink.fill()
    proxy = started(start_proxy, start_server(), sink)
    for _ in range(CONNECTIONS):
        assert answers(proxy)
    proxy.wait_for_workers(2, "idle")
    data = bytearray()

    def told() -> bool:
        data.extend(sink.read())
        return bool(re.search(NOT_WRITTEN.encode(), data, re.MULTILINE))

    wait_until(told, "a line that says how many")
    proxy.send(signal.SIGTERM)
    proxy.wait()
    data += sink.read()
    own = lines_of(data[filled:])
    assert all(WHOLE_LINE.fullmatch(line) for line in own), own
    # The master's first line, and those of the connections.
    shown = [line for line in own if re.search(r" ended: |, 2 workers$", line)]
    told_lines = [line for line in own if re.search(NOT_WRITTEN, line)]
    (match,) = (re.search(NOT_WRITTEN, line) for line in told_lines)
    assert match is not None
    assert int(match[1]) + len(shown) == 1 + CONNECTIONS
    assert match[2] == "nobody read it in time"
    assert "connections served" in own[-1]


def test_lines_that_the_master_lost_are_told_though_no_worker_logs(
    make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink("pipe")
    proxy = started(start_proxy, start_server(), sink)
    wait_until(lambda: b", 2 workers\n" in sink.read(), "the first line")
    sink.fill()
    come_to_rest(proxy)
    before = processes.context_switches(proxy.pid)
    proxy.send(signal.SIGUSR1)
    wait_until(lambda: processes.context_switches(proxy.pid) > before, "the master has woken")
    come_to_rest(proxy)
    proxy.read_log_from(sink.stream())
    # A heading, two workers and the totals.
    proxy.log.wait_for("warning master: 4 lines of the log could not be written")


def come_to_rest(proxy: Proxy) -> None:
    """Wait until every line was written, or tried."""
    pids = [proxy.pid, *proxy.workers()]
    wait_until(lambda: all(map(sleeps, pids)), "all sleep")


def sleeps(pid: int) -> bool:
    before = processes.context_switches(pid)
    let_pass(0.3 * SLOWNESS, why="a process that does not sleep would run meanwhile")
    return processes.state(pid) == "S" and processes.context_switches(pid) == before


@pytest.mark.parametrize("kind", ["pipe", "terminal", "stream socket"])
def test_a_log_that_nobody_reads_wakes_nobody(
    kind: str, make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink(kind)
    sink.fill()
    proxy = started(start_proxy, start_server(), sink)
    assert answers(proxy)
    pids = [proxy.pid, *proxy.wait_for_workers(2, "idle")]
    come_to_rest(proxy)
    before = [processes.context_switches(pid) for pid in pids]
    let_pass(2.5, why="no process may wake meanwhile")
    assert [processes.context_switches(pid) for pid in pids] == before


def test_a_terminal_that_was_stopped_holds_nobody_up(
    make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink("terminal")
    termios.tcflow(sink.writer, termios.TCOOFF)
    proxy = started(start_proxy, start_server(), sink)
    assert all(answers(proxy) for _ in range(10))
    proxy.send(signal.SIGUSR1)
    assert answers(proxy)
    termios.tcflow(sink.writer, termios.TCOON)
    proxy.read_log_from(sink.stream())
    proxy.log.wait_for(NOT_WRITTEN)
    assert answers(proxy)
    proxy.log.wait_for(" ended: ")
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=3) == os.EX_OK


@pytest.mark.parametrize("kind", ["pipe", "stream socket", "packet socket", "terminal"])
def test_a_log_whose_reader_is_gone_costs_nothing_but_the_log(
    kind: str, make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink(kind)
    proxy = started(start_proxy, start_server(), sink)
    sink.close_reader()
    assert all(answers(proxy) for _ in range(10))
    pids = [proxy.pid, *proxy.workers()]
    before = [processes.context_switches(pid) for pid in pids]
    let_pass(1, why="nobody may try again and again to write")
    after = [processes.context_switches(pid) for pid in pids]
    assert sum(after) - sum(before) < 20
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=3) == os.EX_OK


def test_a_reader_that_comes_back_to_a_fifo_is_told_what_it_missed(
    tmp_path: Path, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = logs.fifo(tmp_path)
    proxy = started(start_proxy, start_server(), sink)
    wait_until(lambda: b", 2 workers\n" in sink.read(), "the first line")
    sink.close_reader()
    assert all(answers(proxy) for _ in range(10))
    come_to_rest(proxy)
    proxy.read_log_from((tmp_path / "fifo").open())
    os.close(sink.writer)
    proxy.log.wait_for("10 lines of the log could not be written: Broken pipe")
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK


def test_a_full_device_is_no_trouble_but_for_the_log(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    with open("/dev/full", "w") as full:
        proxy = start_proxy(start_server(), workers=2, ready=False, stderr=full.fileno())
        proxy.wait_for_workers(2, "idle")
        assert all(answers(proxy) for _ in range(10))
        before = processes.context_switches(proxy.pid)
        let_pass(1, why="the master may not try again and again to write")
        assert processes.context_switches(proxy.pid) - before < 10
        proxy.send(signal.SIGTERM)
        assert proxy.wait(timeout=3) == os.EX_OK


def test_a_file_that_can_grow_again_has_whole_lines_and_the_number_lost(
    tmp_path: Path, start_proxy: StartProxy, start_server: StartServer
) -> None:
    path = tmp_path / "log"
    with open(path, "a") as file:
        proxy = start_proxy(start_server(), workers=2, ready=False, stderr=file.fileno())
    pids = [*proxy.wait_for_workers(2, "idle"), proxy.pid]
    wait_for_first_line(path)
    for pid in pids:
        # In the middle of the next line but one.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (path.stat().st_size + 150, -1))
    assert all(answers(proxy) for _ in range(10))
    proxy.wait_for_workers(2, "idle")
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (-1, -1))
    wait_until(lambda: re.search(NOT_WRITTEN, path.read_text(), re.M), "the number of those lost")
    proxy.send(signal.SIGTERM)
    proxy.wait()
    lines = path.read_text().splitlines()
    assert all(WHOLE_LINE.fullmatch(line) for line in lines), lines
    told = [re.search(NOT_WRITTEN, line) for line in lines]
    assert {match[2] for match in told if match} == {"File too large"}
    assert sum(int(match[1]) for match in told if match) == 10 - len(
        [line for line in lines if " -> " in line and " ended: " in line]
    )


# A stderr that cannot be opened again


@needs_namespace
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_nobody_waits_for_a_stderr_that_cannot_be_opened_again(
    kind: str, make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink(kind)
    sink.fill()
    proxy = start_proxy(
        start_server(), workers=2, ready=False, stderr=sink.writer, wrapper=WITHOUT_PROC
    )
    proxy.wait_for_workers(2, "idle")
    # More than fits between the processes and the one that waits.
    for _ in range(8):
        for _ in range(100):
            assert answers(proxy)
        proxy.send(signal.SIGUSR1)
        let_pass(0.5, why="the table is written, which nobody can read")
    flags = fcntl.fcntl(sink.writer, fcntl.F_GETFL)
    assert not flags & os.O_NONBLOCK
    proxy.read_log_from(sink.stream())
    proxy.log.wait_for(NOT_WRITTEN)
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=3) == os.EX_OK
    proxy.log.wait_for("info master: ended; 800 connections served")
    # What filled it may end without the end of a line.
    own = [line.lstrip("#") for line in proxy.log.lines if line.strip("#")]
    assert all(WHOLE_LINE.fullmatch(line) for line in own), own


@needs_namespace
def test_no_process_outlives_a_master_whose_stderr_nobody_reads(
    make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink("pipe")
    proxy = start_proxy(
        start_server(), workers=2, ready=False, stderr=sink.writer, wrapper=WITHOUT_PROC
    )
    proxy.wait_for_workers(2, "idle")
    sink.close_reader()
    assert all(answers(proxy) for _ in range(10))
    pids = proxy.children()
    proxy.send(signal.SIGKILL)
    for pid in pids:
        wait_until(
            lambda pid=pid: not processes.is_alive(pid),  # type: ignore[misc]
            f"process {pid} is gone",
        )


@needs_namespace
def test_a_stderr_that_cannot_be_opened_again_loses_no_line_of_a_pause(
    tmp_path: Path, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = logs.fifo(tmp_path)
    proxy = start_proxy(
        start_server(), workers=2, ready=False, stderr=sink.writer, wrapper=WITHOUT_PROC
    )
    wait_until(lambda: b", 2 workers\n" in sink.read(), "the first line")
    sink.close_reader()
    assert all(answers(proxy) for _ in range(10))
    proxy.read_log_from((tmp_path / "fifo").open())
    sink.close()
    # They wait before the log's process, which tries again.
    proxy.log.wait_for(" ended: ", count=10)
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK


@needs_namespace
def test_a_log_process_that_waits_for_a_full_pipe_ends_with_the_proxy(
    make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink("pipe")
    sink.fill()
    proxy = start_proxy(
        start_server(), workers=2, ready=False, stderr=sink.writer, wrapper=WITHOUT_PROC
    )
    proxy.wait_for_workers(2, "idle")
    assert answers(proxy)
    pid = proxy.wait_for_child(LOG_PROCESS)
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=3) == os.EX_OK
    wait_until(lambda: not processes.is_alive(pid), "the log's process is gone")


@needs_namespace
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_log_process_is_replaced_and_sigterm_does_not_end_one(
    number: signal.Signals, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=2, wrapper=WITHOUT_PROC)
    proxy.wait_for_workers(2, "idle")
    pid = proxy.wait_for_child(LOG_PROCESS)
    os.kill(pid, number)
    if number is signal.SIGKILL:
        proxy.log.wait_for("warning master: log ended, signal 9 .Killed.; starting another")
    assert answers(proxy)
    proxy.log.wait_for(" ended: ")
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=3) == os.EX_OK
    proxy.log.wait_for("ended; 1 connections served")


@needs_namespace
def test_the_log_process_of_a_killed_master_ends_with_the_last_worker(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=2, wrapper=WITHOUT_PROC)
    pid = proxy.wait_for_child(LOG_PROCESS)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        proxy.wait_for_workers(1, " -> ")
        proxy.send(signal.SIGKILL)
        proxy.wait()
    proxy.log.wait_for(" ended: ")
    wait_until(lambda: not processes.is_alive(pid), "the log's process is gone")


# What is written before the log is there, or instead of it


@kinds
@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--no-such-option"], os.EX_USAGE),
        (["--config", "/nonexistent", "8000", "h", "1"], os.EX_CONFIG),
    ],
    ids=["usage", "configuration"],
)
def test_an_error_at_start_does_not_wait_for_a_full_log(
    arguments: List[str], exit_code: int, kind: str, make_sink: MakeSink
) -> None:
    sink = make_sink(kind)
    sink.fill()
    assert ended_with(arguments, sink.writer) == exit_code


@needs_namespace
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_an_error_at_start_reaches_a_stderr_that_cannot_be_opened_again(
    kind: str, make_sink: MakeSink
) -> None:
    sink = make_sink(kind)
    assert ended_with(["--no-such-option"], sink.writer, WITHOUT_PROC) == os.EX_USAGE
    assert sink.read().startswith(b"vsock-proxy: there is no option --no-such-option")
    sink.fill()
    assert ended_with(["--no-such-option"], sink.writer, WITHOUT_PROC) == os.EX_USAGE


def ended_with(arguments: List[str], stderr: int, wrapper: Sequence[str] = ()) -> int:
    done = subprocess.run(
        [*wrapper, *command(*arguments)],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        timeout=10 * SLOWNESS,
        check=False,
    )
    return done.returncode


# What others that have the same stderr see


@kinds
def test_the_open_file_that_others_share_is_left_as_it_was(
    kind: str, make_sink: MakeSink, start_proxy: StartProxy, start_server: StartServer
) -> None:
    sink = make_sink(kind)
    flags = fcntl.fcntl(sink.writer, fcntl.F_GETFL)
    started(start_proxy, start_server(), sink)
    assert fcntl.fcntl(sink.writer, fcntl.F_GETFL) == flags
    assert not flags & os.O_NONBLOCK


def test_lines_of_others_in_the_same_file_are_not_written_over(
    tmp_path: Path, start_proxy: StartProxy, start_server: StartServer
) -> None:
    path = tmp_path / "log"
    with open(path, "wb", buffering=0) as file:
        file.write(b"before\n")
        proxy = start_proxy(start_server(), workers=2, ready=False, stderr=file.fileno())
        wait_for_first_line(path)
        file.write(b"between\n")
        assert answers(proxy)
        proxy.send(signal.SIGTERM)
        proxy.wait()
        file.write(b"after\n")
    lines = path.read_text().splitlines()
    assert (lines[0], lines[2], lines[-1]) == ("before", "between", "after")
    assert all(WHOLE_LINE.fullmatch(line) for line in (lines[1], *lines[3:-1]))
