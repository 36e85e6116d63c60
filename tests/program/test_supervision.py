"""The master and its workers: how many there are, and what becomes of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import is_refused
from tests.support.limited import lift_limit, limited_to
from tests.support.namespaces import WITHOUT_PROC, needs_namespace
from tests.support.program import ID
from tests.support.servers import exchange, silent
from tests.support.systemd import NotifySocket
from tests.support.timing import AT_ONCE, SLOWNESS, let_pass, wait_until
from tests.support.transports import Hybrid


@pytest.mark.hybrid_only  # no transport has a part in it
def test_there_are_as_many_workers_as_asked_for(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=7)
    titles = sorted(processes.title(pid) for pid in proxy.wait_for_workers(7, "idle"))
    assert titles == [f"vsock-proxy: worker {number} idle" for number in range(1, 8)]


def test_a_worker_that_dies_is_replaced(start_proxy: StartProxy, start_server: StartServer) -> None:
    proxy = start_proxy(start_server(), workers=1)
    old = proxy.wait_for_workers(1, "idle")[0]
    os.kill(old, signal.SIGKILL)
    assert proxy.log.wait_for("worker 1 ended, signal 9 .Killed.; starting another")
    wait_until(lambda: set(proxy.workers("idle")) - {old}, "another worker")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.tcp_too
def test_a_worker_that_dies_in_mid_connection_leaves_one_line_about_it(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, workers=1)
    with proxy.connect() as client:
        assert exchange(client, b"12345") == b"12345"
        (worker,) = proxy.wait_for_workers(1, " -> ")
        wait_until(lambda: board.ask(proxy)[0].down == 5, "all is counted")
        os.kill(worker, signal.SIGKILL)
        proxy.log.wait_for("worker 1 ended, signal 9")
    (line,) = proxy.log.matching(" ended: ")
    assert re.search(
        rf"warning master: {ID}{proxy.transport.peer_pattern} -> 127\.0\.0\.1:{server.port} ended: "
        r"5 bytes up, 5 bytes down, \d+\.\d{3} s, worker died$",
        line,
    )


def test_a_worker_that_dies_after_a_connection_adds_no_line_about_it(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
    proxy.log.wait_for(" ended: ")
    (worker,) = proxy.wait_for_workers(1, "idle")
    os.kill(worker, signal.SIGKILL)
    proxy.log.wait_for("worker 1 ended, signal 9")
    assert len(proxy.log.matching(" ended: ")) == 1


def test_sigterm_ends_an_idle_proxy_at_once_with_exit_code_0(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    proxy.wait_for_workers(4, "idle")
    proxy.send(signal.SIGTERM)
    assert proxy.wait(timeout=AT_ONCE) == os.EX_OK


@pytest.mark.tcp_too
def test_a_live_connection_goes_on_after_sigterm_until_it_ends(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    with proxy.connect() as client:
        exchange(client, b"before")
        proxy.send(signal.SIGTERM)
        proxy.wait_for_workers(1)
        assert exchange(client, b"after") == b"after"
        assert not proxy.has_ended()
    assert proxy.wait(timeout=2) == os.EX_OK


@pytest.mark.tcp_too
def test_a_draining_proxy_refuses_new_clients(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    with proxy.connect() as client:
        exchange(client, b"x")
        proxy.send(signal.SIGTERM)
        proxy.wait_for_workers(1)
        wait_until(lambda: is_refused(proxy), "new clients are refused")


def test_the_drain_timeout_ends_what_does_not_end(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), "--drain-timeout", "0.2")
    with proxy.connect() as client:
        exchange(client, b"x")
        proxy.send(signal.SIGTERM)
        assert proxy.wait(timeout=2) == os.EX_OK
    proxy.log.wait_for("connections that did not end in time: 1; ending them now")
    proxy.log.wait_for("ended: .* proxy ends now")


def test_a_second_signal_ends_everything_now(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(silent))
    with proxy.connect():
        proxy.wait_for_workers(1, " -> ")
        proxy.send(signal.SIGINT)
        proxy.wait_for_workers(1)
        proxy.send(signal.SIGTERM)
        assert proxy.wait(timeout=AT_ONCE) == os.EX_OK


@pytest.mark.tcp_too
def test_a_live_connection_outlives_a_killed_master_and_leaves_nothing(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server)
    pids = proxy.wait_for_workers(4)
    with proxy.connect() as client:
        exchange(client, b"before")
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(
            lambda: sum(processes.is_alive(pid) for pid in pids) == 1, "idle workers are gone"
        )
        assert exchange(client, b"after") == b"after"
    wait_until(lambda: not any(map(processes.is_alive, pids)), "no worker is left")
    again = start_proxy(server)
    with again.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.tcp_too
def test_another_proxy_can_listen_while_a_killed_ones_connection_lives(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, workers=1)
    with proxy.connect() as live:
        exchange(live, b"before")
        (worker,) = proxy.wait_for_workers(1, " -> ")
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: is_refused(proxy), "the port is free")
        again = start_proxy(server)
        with again.connect() as client:
            assert exchange(client, b"x") == b"x"
        assert exchange(live, b"after") == b"after"
    wait_until(lambda: not processes.is_alive(worker), "the old worker is gone")


def test_a_worker_keeps_no_descriptor_of_a_connection_that_has_ended(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    (worker,) = proxy.wait_for_workers(1, "idle")
    files = processes.open_files(worker)
    for _ in range(3):
        with proxy.connect() as client:
            exchange(client, b"x")
            proxy.wait_for_workers(1, " -> ")
        proxy.wait_for_workers(1, "idle")
        assert processes.open_files(worker) == files


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_where_there_is_no_proc_connections_last_all_the_same(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), wrapper=WITHOUT_PROC)
    with proxy.connect() as client:
        exchange(client, b"before")
        proxy.wait_for_workers(1, " -> ")
        assert exchange(client, b"after") == b"after"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_ctrl_c_at_a_terminal_ends_no_live_connection(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    with proxy.connect() as client:
        exchange(client, b"before")
        for pid in (*proxy.children(), proxy.pid):
            os.kill(pid, signal.SIGINT)
        proxy.wait_for_workers(1)
        assert exchange(client, b"after") == b"after"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_resolver_that_dies_does_not_wait_behind_dead_workers(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(("localhost", start_server().port), workers=30)
    workers = proxy.wait_for_workers(30, "idle")
    (resolver,) = set(proxy.children()) - set(workers)
    for pid in (*workers, resolver):
        os.kill(pid, signal.SIGKILL)
    proxy.log.wait_for("resolver ended, signal 9 .Killed.; starting another$", timeout=1)
    proxy.log.wait_for(r"worker \d+ ended, signal 9 .Killed.; starting another in [12]\.\d s")


# Too few processes


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_with_too_few_workers_it_serves_and_one_line_says_how_many_lack(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=20, wrapper=limited_to(3))
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
    let_pass(2.5, why="the master tries again, which is no reason to say it again")
    lines = proxy.log.matching(" (error|warning) ")
    assert len(lines) == 1
    assert "cannot start 18 of 20 workers: Resource temporarily unavailable" in lines[0]
    assert "ulimit -u" in lines[0]
    lift_limit(proxy)
    proxy.log.wait_for("info master: all 20 workers run")
    proxy.wait_for_workers(20, "idle")


@needs_namespace
def test_ready_is_said_only_when_a_worker_serves(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> None:
    systemd = NotifySocket(str(tmp_path / "notify"))
    proxy = start_proxy(
        start_server(),
        wrapper=limited_to(1),
        environment={**os.environ, "NOTIFY_SOCKET": systemd.address},
        ready=False,
    )
    proxy.log.wait_for("error master: cannot start 4 of 4 workers: ")
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("cannot start a process to read it: .*; the allowlist stays as it was$")
    assert systemd.is_empty()
    lift_limit(proxy)
    systemd.wait_for("^READY=1$")
    systemd.close()
    proxy.log.wait_for(r" -> .*, 4 workers$")


# Ending


@pytest.mark.hybrid_only  # there is no path to remove on AF_VSOCK
@needs_namespace
def test_a_unix_socket_that_stays_is_one_line_and_the_drain_goes_on(
    start_proxy: StartProxy, start_server: StartServer, transport: Hybrid
) -> None:
    folder = str(transport.path.parent)
    bound = ["unshare", "--mount", "sh", "-c", f'mount --bind {folder} {folder}; exec "$@"', "sh"]
    proxy = start_proxy(start_server(), wrapper=bound)
    inside = ["nsenter", f"--target={proxy.pid}", "--mount"]
    with proxy.connect() as client:
        exchange(client, b"before")
        subprocess.run([*inside, "mount", "-o", "remount,ro,bind", folder], check=True)
        proxy.send(signal.SIGTERM)
        proxy.wait_for_workers(1)
        assert exchange(client, b"after") == b"after"
    assert proxy.wait() == os.EX_OK
    proxy.log.join()
    lines = proxy.log.matching(" (error|warning) ")
    assert len(lines) == 1
    assert f"cannot remove the Unix socket {transport.path}: Read-only file system" in lines[0]


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_worker_that_ends_since_its_whole_group_was_told_to_is_no_fault(
    start_proxy: StartProxy, start_server: StartServer, number: signal.Signals
) -> None:
    proxy = start_proxy(start_server(), wrapper=["setsid"], workers=20)
    proxy.wait_for_workers(20, "idle")
    os.killpg(proxy.pid, number)
    assert proxy.wait() == os.EX_OK
    proxy.log.join()
    assert not proxy.log.matching(" (error|warning) | starting another")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_worker_that_ends_by_sigterm_is_replaced_without_a_warning(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    old = proxy.wait_for_workers(1, "idle")
    os.kill(old[0], signal.SIGTERM)
    proxy.log.wait_for("info master: worker 1 ended, exit code 0; starting another")
    wait_until(lambda: set(proxy.workers("idle")) - set(old), "another worker")


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
@pytest.mark.parametrize(
    "tool", [["pidof", "vsock-proxy"], ["pgrep", "-x", "vsock-proxy"]], ids=lambda tool: tool[0]
)
def test_the_master_alone_is_found_by_the_name_of_the_program(
    start_proxy: StartProxy, start_server: StartServer, tool: List[str]
) -> None:
    if not shutil.which(tool[0]):
        pytest.skip(f"needs {tool[0]}")
    proxy = start_proxy(start_server())
    proxy.wait_for_workers(4, "idle")
    found = subprocess.run(tool, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    # Others may run the program at the same time.
    assert {str(pid) for pid in (proxy.pid, *proxy.children())} & set(found) == {str(proxy.pid)}


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_killall_by_the_name_of_the_program_reaches_the_master(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    if not shutil.which("killall"):
        pytest.skip("needs killall")
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    proxy = start_proxy(start_server(), wrapper=alone)
    inside = ["nsenter", f"--target={processes.children(proxy.pid)[0]}", "--pid", "--mount"]
    subprocess.run([*inside, "killall", "-HUP", "vsock-proxy"], check=True)
    proxy.log.wait_for("allowlist read again")
    subprocess.run([*inside, "killall", "vsock-proxy"], check=True)
    assert proxy.wait() == os.EX_OK


@pytest.mark.tcp_too
def test_an_idle_proxy_makes_no_system_call(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server())
    pids = [*proxy.wait_for_workers(4, "idle"), proxy.pid]
    # A title says idle a little before its process sleeps.
    wait_until(lambda: not _any_wakes(pids, 0.5), "all sleep")
    # A process that waits can only do anything after it was switched to.
    assert not _any_wakes(pids, 3.0)


def _any_wakes(pids: list[int], seconds: float) -> bool:
    before = [processes.context_switches(pid) for pid in pids]
    try:
        wait_until(
            lambda: [processes.context_switches(pid) for pid in pids] != before,
            "a process has woken",
            seconds / SLOWNESS,
        )
    except AssertionError:
        return False
    return True
