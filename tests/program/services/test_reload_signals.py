"""Reloads, other signals and deaths at the same time."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.program.services.conftest import Scene
from tests.support import processes
from tests.support.clients import is_refused
from tests.support.program import Proxy
from tests.support.services import READER, all_idle, letter, letter_at, say, service
from tests.support.timing import let_pass, wait_until


def parses(proxy: Proxy) -> bool:
    """Whether the process that reads has had some time; the reading itself takes little."""
    readers = [pid for pid in proxy.children() if processes.title(pid) == READER]
    return any(processes.processor_ticks(pid) >= 3 for pid in readers)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_asked_for_during_another_begins_once_that_is_in_force(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    # It takes a while until all these workers have ended.
    proxy = scene.start(service(one, server), workers=80)
    all_idle(proxy, 80)
    # It takes a while to read so much.
    scene.file.write(
        [service(one, server), service(two, server)],
        [(server.host, server.port), *(("10.0.0.1", port) for port in range(1, 5000))],
    )
    proxy.send(signal.SIGHUP)
    wait_until(lambda: parses(proxy), "the file has been read and is parsed")
    scene.file.write([service(one, server)])
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(r"services read again: .* removed")
    assert len(proxy.log.matching(r"services read again: .* added")) == 1
    scene.file.systemd.wait_for("^RELOADING=1\n")
    scene.file.systemd.wait_for("^RELOADING=1\n")
    scene.file.systemd.wait_for("^READY=1$")
    assert is_refused(proxy, two)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_asked_for_during_a_reload_reads_what_the_file_says_then(scene: Scene) -> None:
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    other = scene.server(letter(b"B"))
    proxy = scene.start(service(one, server), service(two, server, workers=2), workers=2)
    for endpoint in (other, server, other):
        scene.file.write([service(one, endpoint), service(two, endpoint, workers=2)])
        proxy.send(signal.SIGHUP)
    wait_until(
        lambda: [letter_at(proxy, port) for port in (one, two)] == [b"B", b"B"],
        "what was written last is in force",
    )
    all_idle(proxy, 4)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_after_a_storm_of_reloads_the_last_file_is_in_force(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    server, other = scene.server(letter(b"A")), scene.server(letter(b"B"))
    variants = [
        [service(one, server), service(two, server)],
        [service(one, server), service(two, server, workers=2), service(three, server)],
        [service(one, server, workers=1), service(three, other)],
        [service(one, server)],
    ]
    proxy = scene.start(*variants[0], workers=2)
    for number in range(40):
        scene.file.write(variants[number % 4])
        proxy.send(signal.SIGHUP)
        let_pass(number % 7 * 0.003, why="the next reload comes at another moment each time")
        assert letter_at(proxy, one) == b"A"
    scene.file.write([service(one, server), service(three, other, workers=1)])
    proxy.send(signal.SIGHUP)
    wait_until(
        lambda: is_refused(proxy, two) and letter_at_if_any(proxy, three) == b"B",
        "what was written last is in force",
    )
    all_idle(proxy, 3)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=lambda number: number.name)
@pytest.mark.parametrize("milliseconds", [0, 3, 10, 20, 40, 80])
def test_the_end_during_a_reload_is_obeyed_and_leaves_no_process(
    scene: Scene, milliseconds: int, number: signal.Signals
) -> None:
    ports = scene.ports(4)
    old, new = scene.server(), scene.server()
    proxy = scene.start(
        service(ports[0], old), *(service(port, old, workers=2) for port in ports[1:]), workers=2
    )
    seen = set(proxy.children())
    scene.file.write(
        [service(ports[0], new), *(service(port, new, workers=3) for port in ports[1:])]
    )
    proxy.send(signal.SIGHUP)
    let_pass(milliseconds / 1000, why="the end comes at this moment of the reload")
    seen |= set(proxy.children())
    proxy.send(number)
    seen |= set(proxy.children())
    assert proxy.wait() == os.EX_OK
    wait_until(lambda: not any(map(processes.is_alive, seen)), "no process is left")
    proxy.log.join()
    assert not proxy.log.matching(" error | starting another")
    for port in ports:
        assert is_refused(proxy, port)


def test_sigterm_after_a_reload_lets_connections_of_old_and_new_pools_end(scene: Scene) -> None:
    one, two = scene.ports(2)
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    proxy = scene.start(service(one, old), service(two, old, workers=1), workers=1)
    with proxy.connect(one) as first, proxy.connect(two) as second:
        assert (say(first), say(second)) == (b"A", b"A")
        scene.reload(proxy, service(one, new))
        wait_until(lambda: letter_at(proxy, one) == b"B", "the new endpoint")
        with proxy.connect(one) as third:
            assert say(third) == b"B"
            proxy.send(signal.SIGTERM)
            wait_until(lambda: is_refused(proxy, one), "new clients are refused")
            assert (say(first), say(second), say(third)) == (b"A", b"A", b"B")
            assert not proxy.has_ended()
    assert proxy.wait(timeout=2) == os.EX_OK


def test_a_worker_of_a_pool_that_is_replaced_may_die_at_any_time(scene: Scene) -> None:
    one, two = scene.ports(2)
    servers = [scene.server(letter(b"A")), scene.server(letter(b"B"))]
    proxy = scene.start(service(one, servers[0]), service(two, servers[0], workers=2), workers=2)
    all_idle(proxy, 4)
    for number in range(1, 9):
        endpoint, name = servers[number % 2], b"AB"[number % 2 : number % 2 + 1]
        scene.file.write([service(one, endpoint), service(two, endpoint, workers=2)])
        proxy.send(signal.SIGHUP)
        let_pass(number * 0.005, why="the workers die at another moment each time")
        killed = proxy.workers()[:2]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # While one dies it may still be woken for a client, of whom nobody else is told then.
        wait_until(lambda: not any(map(processes.is_alive, killed)), "they are gone")  # noqa: B023
        for port in (one, two):
            wait_until(
                lambda port=port, name=name: letter_at_if_any(proxy, port) == name,  # type: ignore[misc]
                "the new endpoint",
            )
    all_idle(proxy, 4)


def letter_at_if_any(proxy: Proxy, port: int) -> bytes:
    """As letter_at(); empty for a client that is refused, or whose worker is killed."""
    try:
        return letter_at(proxy, port)
    except (AssertionError, ConnectionError, FileNotFoundError):
        return b""


def test_reloads_leave_no_descriptor_and_no_process_behind(scene: Scene) -> None:
    one, two, three = scene.ports(3)
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    names = ("localhost", old.port)
    first = [service(one, old), service(two, old, workers=1), service(three, names)]
    second = [service(one, new), service(two, new, workers=2)]
    proxy = scene.start(*first, workers=1)
    scene.reload(proxy, *second)
    scene.reload(proxy, *first)
    all_idle(proxy, 2)
    files = processes.open_files(proxy.pid)
    of_workers = sorted(processes.open_files(pid) for pid in proxy.workers())
    for _ in range(10):
        scene.reload(proxy, *second)
        scene.reload(proxy, *first)
    all_idle(proxy, 2)
    # What was closed last may be open for a moment longer; a leak would be one in each reload.
    assert processes.open_files(proxy.pid) <= files + 2
    assert sorted(processes.open_files(pid) for pid in proxy.workers()) == of_workers
    wait_until(lambda: len(proxy.children()) == 3, "two workers and the resolver are left")


def test_nothing_is_left_if_the_master_is_killed_during_a_reload(scene: Scene) -> None:
    ports = scene.ports(3)
    old, new = scene.server(), scene.server()
    for milliseconds in (0, 5, 10, 20, 40):
        proxy = scene.start(*(service(port, old, workers=2) for port in ports))
        scene.file.write(service(port, new, workers=2) for port in ports)
        seen = set(proxy.children())
        proxy.send(signal.SIGHUP)
        let_pass(milliseconds / 1000, why="the end comes at this moment of the reload")
        seen |= set(proxy.children())
        proxy.send(signal.SIGKILL)
        proxy.wait()
        wait_until(lambda: not any(map(processes.is_alive, seen)), "no process is left")  # noqa: B023
        assert all(is_refused(proxy, port) for port in ports)
