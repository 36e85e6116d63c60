"""SIGHUP: the allowlist is read again, and clients do not notice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Callable, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, processes
from tests.support.clients import is_refused
from tests.support.program import Proxy
from tests.support.servers import Server, exchange
from tests.support.timing import SLOWNESS, wait_until


@pytest.fixture
def server(start_server: StartServer) -> Server:
    return start_server()


@pytest.fixture
def config(server: Server, write_allowlist: Callable[..., Path]) -> Path:
    """The file that the proxy reads; it permits the server."""
    return write_allowlist(("127.0.0.1", server.port))


@pytest.fixture
def proxy(start_proxy: StartProxy, server: Server, config: Path) -> Proxy:
    return start_proxy(server, config=config)


def test_a_reload_is_not_noticed_by_clients(proxy: Proxy) -> None:
    pids = sorted(proxy.wait_for_workers(4))
    with proxy.connect() as live:
        exchange(live, b"before")
        for count in range(1, 6):
            proxy.send(signal.SIGHUP)
            proxy.log.wait_for("info master: allowlist read again", count=count)
        assert exchange(live, b"after") == b"after"
        with proxy.connect() as client:
            assert exchange(client, b"new") == b"new"
    assert sorted(proxy.workers()) == pids


BAD_FILES = {
    "no YAML": b"allowlist: [",
    "empty": b"",
    "no list": b"allowlist: yes\n",
    "a bad port": b"allowlist:\n- {address: 127.0.0.1, port: 70000}\n",
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_error_line_and_the_old_list_stays(
    content: bytes, config: Path, proxy: Proxy
) -> None:
    good = config.read_bytes()
    config.write_bytes(content)
    with proxy.connect() as live:
        exchange(live, b"before")
        proxy.send(signal.SIGHUP)
        proxy.log.wait_for(
            f"error master: (file|allowlist) {config}.*; the allowlist stays as it was$"
        )
        assert exchange(live, b"after") == b"after"
        with proxy.connect() as client:
            assert exchange(client, b"new") == b"new"
    assert len(proxy.log.matching(" error master: ")) == 1
    config.write_bytes(good)
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("info master: allowlist read again")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_file_that_is_gone_is_one_error_line_and_the_old_list_stays(
    config: Path, proxy: Proxy
) -> None:
    config.unlink()
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("No such file or directory.*; the allowlist stays as it was$")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


def test_an_endpoint_no_longer_permitted_drains_and_ends_with_78(
    write_allowlist: Callable[..., Path], server: Server, proxy: Proxy
) -> None:
    with proxy.connect() as live:
        exchange(live, b"before")
        write_allowlist(("127.0.0.2", server.port))
        proxy.send(signal.SIGHUP)
        proxy.log.wait_for(f"error master: 127.0.0.1:{server.port} is not permitted by .*; ending")
        wait_until(lambda: is_refused(proxy), "new clients are refused")
        assert exchange(live, b"after") == b"after"
        assert not proxy.has_ended()
    assert proxy.wait(timeout=2) == os.EX_CONFIG


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_while_draining_does_not_change_how_it_ends(
    write_allowlist: Callable[..., Path], server: Server, proxy: Proxy
) -> None:
    with proxy.connect() as live:
        exchange(live, b"x")
        proxy.send(signal.SIGTERM)
        proxy.wait_for_workers(1)
        write_allowlist(("127.0.0.2", server.port))
        proxy.send(signal.SIGHUP)
        # Written after whatever the reload did, as the master takes one signal after the other.
        proxy.send(signal.SIGUSR1)
        proxy.log.wait_for("connections served")
        assert exchange(live, b"after") == b"after"
    assert proxy.wait(timeout=2) == os.EX_OK


def large_allowlist(config: Path, port: int) -> None:
    """One that takes a moment to read, and permits the endpoint."""
    entry = f"- {{address: 127.0.0.1, port: {port}}}\n"
    config.write_text("allowlist:\n" + entry * int(9000 / SLOWNESS))


def stopped_reader(proxy: Proxy) -> int:
    """Reload, and stop the process that reads the file before it has ended."""
    while True:
        begun = len(proxy.log.matching("allowlist read again"))
        proxy.send(signal.SIGHUP)
        found = wait_until(
            lambda: readers(proxy) or len(proxy.log.matching("allowlist read again")) > begun,  # noqa: B023
            "a process reads the file, or has read it",
        )
        for pid in found if isinstance(found, list) else []:
            if is_stopped(pid):
                return int(pid)


def readers(proxy: Proxy) -> List[int]:
    title = "vsock-proxy: reload"
    return [pid for pid in proxy.children() if processes.title(pid).startswith(title)]


def is_stopped(pid: int) -> bool:
    """Stop a process, and say whether there was one to stop."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    wait_until(lambda: processes.state(pid) in ("T", "Z", None), "it stops, or has ended")
    return processes.state(pid) == "T"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_file_that_takes_long_to_read_keeps_the_master_from_nothing(
    start_proxy: StartProxy, server: Server, config: Path
) -> None:
    proxy = start_proxy(server, config=config, workers=2)
    large_allowlist(config, server.port)
    reader = stopped_reader(proxy)
    began = time.monotonic()
    board.ask(proxy)
    old = proxy.workers()[0]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: len(set(proxy.workers("idle")) - {old}) == 2, "another worker")
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK
    assert time.monotonic() - began < 5 * SLOWNESS
    wait_until(lambda: not processes.is_alive(reader), "the reader is gone")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_killed_reader_of_the_file_is_one_error_and_the_old_list_stays(
    server: Server, config: Path, proxy: Proxy
) -> None:
    large_allowlist(config, server.port)
    os.kill(stopped_reader(proxy), signal.SIGKILL)
    proxy.log.wait_for(
        f"error master: file {config}: the process that read it ended by signal 9 .Killed.; "
        "the allowlist stays as it was$"
    )
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("info master: allowlist read again")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_all_reloads_that_are_asked_for_during_one_are_one_more_after_it(
    server: Server, config: Path, proxy: Proxy
) -> None:
    large_allowlist(config, server.port)
    reader = stopped_reader(proxy)
    before = len(proxy.log.matching("allowlist read again"))
    for _ in range(3):
        proxy.send(signal.SIGHUP)
        board.ask(proxy)
    os.kill(reader, signal.SIGCONT)
    proxy.log.wait_for("allowlist read again", timeout=60, count=before + 2)
    wait_until(lambda: not readers(proxy), "no more reading")
    board.ask(proxy)
    assert len(proxy.log.matching("allowlist read again")) == before + 2


@pytest.mark.hybrid_only  # no transport has a part in it
def test_an_unknown_key_is_warned_of_once_a_reload(config: Path, proxy: Proxy) -> None:
    config.write_text(config.read_text() + "surprise: 1\n")
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("info master: allowlist read again")
    assert len(proxy.log.matching("warning master: .* unknown key 'surprise' ignored")) == 1
