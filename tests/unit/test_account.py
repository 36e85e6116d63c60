"""What was done since the start: pools and tables that are gone are added to it."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Tuple

import pytest

from vsock_proxy.endpoint.addresses import RESOLVED, AddressTable
from vsock_proxy.observing.account import SHARED, Account, PoolView, Scene
from vsock_proxy.observing.measures import Measured, Measures
from vsock_proxy.observing.scoreboard import REFUSED, TOTAL_UP, Scoreboard
from vsock_proxy.settings import Endpoint

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def pool(
    *services: str, name: str = SHARED, up: int = 0, table: Optional[AddressTable] = None
) -> PoolView:
    """One whose only worker has moved these numbers of bytes for the last of the services."""
    board = Scoreboard(1)
    board.claim(1, 1)
    measures = Measures(board, len(services))
    measures.turn(1, len(services) - 1)
    board.slot(1)[TOTAL_UP] += up
    board.saturated = up
    endpoints = (Endpoint("endpoint.test", 443),) * len(services)
    return PoolView(name, services, endpoints, (table,) * len(services), board, measures)


def tries(endpoint: str, connected: int = 0, failed: int = 0) -> PoolView:
    """A pool of one service, whose endpoint was connected to, and was not, at these times."""
    view = pool("8000")
    tally = view.measures.turn(1, 0)
    if connected:
        tally.connected(1, connected)
    if failed:
        tally.failed(REFUSED, failed)
    return replace(view, endpoints=(Endpoint(endpoint, 443),))


def ups(account: Account) -> Tuple[Tuple[str, int], ...]:
    return tuple((name, measured.up) for name, measured in account.services.items())


def test_pools_that_have_ended_stay_in_it_by_the_names_of_their_services() -> None:
    before = Account().plus_pools([pool("8000", "8001", up=1), pool("8002", name="8002", up=10)])
    after = before.plus_pools([pool("8001", "8000", up=100)])
    assert ups(before) == (("8000", 0), ("8001", 1), ("8002", 10))
    assert ups(after) == (("8000", 100), ("8001", 1), ("8002", 10))
    assert after.saturated == {SHARED: 101, "8002": 10}


def test_an_account_adds_up_live_pools_ending_ones_and_what_was_before() -> None:
    scene = Scene([pool("8000", up=1)], [pool("8000", up=10)], Account({"8000": Measured(up=100)}))
    assert ups(scene.account()) == (("8000", 111),)


TRIED: List[Tuple[List[PoolView], PoolView, Tuple[int, int]]] = [
    ([], tries("a.test"), (0, 0)),
    ([tries("a.test", failed=5)], tries("a.test"), (0, 5)),
    ([tries("a.test", failed=5)], tries("a.test", connected=7), (7, 5)),
    # A worker of the pool before was still at it.
    ([tries("a.test", failed=8)], tries("a.test", connected=7), (7, 8)),
    ([tries("a.test", failed=5)], tries("b.test"), (0, 0)),
    ([tries("a.test", failed=5), tries("b.test")], tries("a.test"), (0, 0)),
]


@pytest.mark.parametrize(("earlier", "now", "known"), TRIED)
@pytest.mark.parametrize("have_ended", [False, True])
def test_what_is_known_of_an_endpoint_outlives_a_pool(
    earlier: List[PoolView], now: PoolView, known: Tuple[int, int], have_ended: bool
) -> None:
    before = Account().plus_pools(earlier if have_ended else [])
    scene = Scene([now], [] if have_ended else earlier, before)
    found = scene.account().tried["8000"]
    assert found.endpoint == now.endpoints[0]
    assert (found.connected, found.failed) == known


def test_a_table_that_two_pools_had_counts_once() -> None:
    table, gone = AddressTable(443), AddressTable(443)
    for each in (table, gone, gone):
        each.count_lookup(RESOLVED)
    before = Account().plus_lookups([("8000", gone)])
    # The pool before had it too.
    scene = Scene([pool("8000", table=table)], [pool("8000", table=table)], before)
    seen = scene.account().lookups["8000"]
    assert (seen.resolved, seen.unresolved) == (3, 0)
    assert seen.resolved_at == max(table.lookups.resolved_at, gone.lookups.resolved_at)
    for each in (table, gone):
        each.close()


def test_a_service_of_which_nothing_is_looked_up_has_no_lookups() -> None:
    assert Scene([pool("8000")], [], Account()).account().lookups == {}
