"""Lines that guests can cause: how many there are, and what is said of the rest."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board
from tests.support.clients import answers
from tests.support.program import Proxy
from tests.support.servers import exchange
from tests.support.timing import AT_ONCE, SLOWNESS, let_pass, wait_until


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_one_warning_tells_that_all_workers_are_busy_for_a_second(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    for round_of_clients in range(2):
        clients = [proxy.connect() for _ in range(2)]
        began = time.monotonic()
        if round_of_clients == 0:
            line = proxy.log.wait_for("warning master: all 2 workers are busy.*-w")[0]
            assert "-w" in line
            assert 0.9 < time.monotonic() - began < 1 + AT_ONCE * SLOWNESS
        else:
            let_pass(1.5, why="a second warning may not come, though all are busy for so long")
        for client in clients:
            client.close()
        board.wait_until_idle(proxy, 2)
    assert len(proxy.log.matching("workers are busy")) == 1


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.alone
def test_all_workers_being_busy_for_a_moment_is_no_warning(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=1)
    for _ in range(4):
        with proxy.connect() as client:
            exchange(client, b"x")
            let_pass(0.3, why="all are busy for a moment")
        board.wait_until_idle(proxy, 1)
        let_pass(0.3, why="none is busy for a moment")
    assert not proxy.log.matching("workers are busy")


@pytest.mark.hybrid_only  # an emulated machine serves fewer than would be left out
@pytest.mark.alone
@pytest.mark.parametrize("workers", [2, 50])
def test_all_workers_together_bound_a_guests_lines_and_count_the_rest(
    workers: int, start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    server.close()
    proxy = start_proxy(server, workers=workers)
    began = time.monotonic()
    total = int(2000 / SLOWNESS)
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: answers(proxy), range(total)):
            pass
    # The last line is told without another one to be written.
    wait_until(lambda: shown(proxy) + left_out(proxy) == total, "lines that tell of all")
    took = time.monotonic() - began
    # The workers share one bound; on few processors hardly two take a place in the same instant.
    assert shown(proxy) <= 200 * (1 + took) + 10
    assert shown(proxy) < total
    assert len(proxy.log.matching("lines? (was|were) left out")) <= 2 + took


def shown(proxy: Proxy) -> int:
    return len(proxy.log.matching("cannot connect"))


def left_out(proxy: Proxy) -> int:
    """How many lines the log says were left out."""
    lines = proxy.log.matching(r"warning master: \d+ lines? (was|were) left out")
    return sum(int(re.findall(r"(\d+) lines? w", line)[0]) for line in lines)
