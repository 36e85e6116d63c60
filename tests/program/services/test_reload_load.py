"""Reloads under load: no client of a port that stays notices."""

from __future__ import annotations

import time
from collections import Counter
from typing import Callable, Iterator, List, Sequence, Set, Tuple

import pytest

from tests.program.services.conftest import Scene
from tests.support.crowd import THREADS_A_PORT, Client, Crowd, End, answering
from tests.support.services import pool_of, service
from tests.support.timing import SLOWNESS, at_full_length, let_pass, wait_until

# Two rounds of the changes below, or one.
RELOADS = int(at_full_length(20, otherwise=10))
# Clients a second for each port. An emulated machine, or one that others use, may not keep up.
RATE = 100 / SLOWNESS
# From one reload being in force to the next.
BETWEEN = 0.5 * SLOWNESS
# What came to an old worker before it was told to end is still served by it.
HANDED_OVER = 1.0 * SLOWNESS


@pytest.mark.alone
def test_reloads_under_load_lose_and_refuse_no_client_of_a_lasting_port(scene: Scene) -> None:
    heard: Set[int] = set()
    first, second = scene.server(answering(b"A", heard)), scene.server(answering(b"B", heard))
    same, changes, steady, other, moves, comes_and_goes = ports = scene.ports(6)
    services = {
        same: service(same, first, workers=3),
        changes: service(changes, first, workers=3),
        steady: service(steady, first),
        other: service(other, first),
        moves: service(moves, first),
        comes_and_goes: service(comes_and_goes, first),
    }
    changes_of_a_round: List[Callable[[], None]] = [
        lambda: services.update({changes: service(changes, second, workers=3)}),
        lambda: services.__delitem__(comes_and_goes),
        lambda: services.update({changes: service(changes, second, workers=4)}),
        lambda: services.update({moves: service(moves, first, workers=3)}),
        lambda: services.update({other: service(other, first, idle_timeout=900)}),
        lambda: services.update({comes_and_goes: service(comes_and_goes, second)}),
        lambda: services.update({changes: service(changes, first, workers=3)}),
        lambda: services.update({moves: service(moves, second)}),
        lambda: services.update({other: service(other, first)}),
        lambda: services.update({comes_and_goes: service(comes_and_goes, first, workers=2)}),
    ]
    proxy = scene.start(*services.values(), workers=8)
    untouched = wait_until(lambda: pool_of(proxy, same), "its pool")
    # When which endpoint of the service that changes came into force.
    in_force = [(0.0, b"A")]
    with Crowd(proxy.connect, ports, RATE) as crowd:
        let_pass(BETWEEN, why="clients come before the first reload too")
        for number in range(RELOADS):
            changes_of_a_round[number % len(changes_of_a_round)]()
            scene.reload(proxy, *services.values())
            name = b"A" if services[changes]["port"] == first.port else b"B"
            in_force.append((time.monotonic(), name))
            let_pass(BETWEEN, why="clients come between two reloads")
    for port in ports:
        ends = Counter(client.end for client in crowd.of(port))
        assert port == comes_and_goes or set(ends) == {End.ANSWERED}, (port, ends)
        assert min(at_each_reload(crowd.of(port), in_force)) >= THREADS_A_PORT
        assert not ends[End.WRONG]
    cut = [client for client in crowd.been if client.end is End.CUT]
    assert not [client for client in cut if client.number in heard]
    assert {client.end for client in crowd.of(comes_and_goes)} >= {End.ANSWERED, End.REFUSED}
    assert {client.letter for client in crowd.of(changes)} == {b"A", b"B"}
    for client in crowd.of(changes):
        before = [name for when, name in in_force if when < client.began - HANDED_OVER]
        since = [name for when, name in in_force if client.began - HANDED_OVER <= when]
        assert client.letter in {*before[-1:], *since}
    assert pool_of(proxy, same) == untouched
    # How many lines were left out, as there were too many; and that a slow machine is busy.
    known = proxy.log.matching("lines? .*left out|are busy, further clients wait")
    assert [line for line in proxy.log.matching(" (error|warning) ") if line not in known] == []


def at_each_reload(
    clients: Sequence[Client], in_force: Sequence[Tuple[float, bytes]]
) -> Iterator[int]:
    """How many were there before and during each reload, since the reload before it."""
    for (since, _), (until, _) in zip(in_force, in_force[1:]):
        yield sum(client.began < until and client.ended > since for client in clients)
