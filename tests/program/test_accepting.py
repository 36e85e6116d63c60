"""accept() that fails for good, for whatever reason."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from typing import List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.clients import answers
from tests.support.program import Proxy
from tests.support.timing import let_pass, wait_until

NOT_ACCEPTED = r"error master: cannot accept: (.*); going on \((\d+) attempts? failed\)$"
WORKERS = 4

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def failing(error: str, when: str = "1+") -> List[str]:
    """What to put before a command to have each of its processes' accept()s fail."""
    inject = f"inject=accept4:error={error}:when={when}"
    return ["strace", "-D", "-f", "-qq", "-o", os.devnull, "-e", "trace=accept4", "-e", inject]


def connected(proxy: Proxy, stack: contextlib.ExitStack, count: int) -> None:
    """Clients that wait for somebody to accept them."""
    for _ in range(count):
        stack.enter_context(proxy.connect())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("EPERM", "Operation not permitted"),
        ("EINVAL", "Invalid argument"),
        ("EMFILE", "Too many open files"),
        ("ECONNABORTED", "Software caused connection abort"),
        ("ENETDOWN", "Network is down"),
        ("EOPNOTSUPP", "Operation not supported"),
    ],
)
def test_an_accept_that_always_fails_costs_a_line_a_second_and_no_cpu(
    error: str, words: str, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=WORKERS, wrapper=failing(error))
    with contextlib.ExitStack() as stack:
        connected(proxy, stack, 2 * WORKERS)
        proxy.log.wait_for(NOT_ACCEPTED)
        workers = proxy.workers()
        wakings = sum(map(processes.context_switches, workers))
        began = time.monotonic()
        let_pass(2.5, why="no more than a line a second may be written")
        took = time.monotonic() - began
        lines = proxy.log.matching("cannot accept")
        assert 2 <= len(lines) <= 2 + took
        assert all(re.search(NOT_ACCEPTED, line) for line in lines)
        assert words in lines[0]
        # Five attempts a second each, of which strace stops every one twice.
        assert sum(map(processes.context_switches, workers)) - wakings < 40 * WORKERS * took
        proxy.send(signal.SIGTERM)
        assert proxy.wait(timeout=2) == os.EX_OK
    assert not proxy.log.matching("starting another")


def test_each_failed_accept_is_counted_and_then_the_client_is_served(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1, wrapper=failing("ENOBUFS", "1..7"))
    assert answers(proxy)
    wait_until(lambda: failures(proxy) == 7, "all seven are told")
    assert len(proxy.log.matching("cannot accept")) <= 4


def failures(proxy: Proxy) -> int:
    found = [re.search(NOT_ACCEPTED, line) for line in proxy.log.matching("cannot accept")]
    return sum(int(match[2]) for match in found if match)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_a_worker_that_pauses_after_a_failed_accept_ends_with_its_master(
    number: signal.Signals, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=WORKERS, wrapper=failing("EPERM"))
    with contextlib.ExitStack() as stack:
        connected(proxy, stack, 2 * WORKERS)
        proxy.log.wait_for(NOT_ACCEPTED)
        workers = proxy.workers()
        proxy.send(number)
        proxy.wait(timeout=2)
        wait_until(
            lambda: not any(map(processes.is_alive, workers)), "no worker is left", timeout=1
        )
