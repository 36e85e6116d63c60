"""Relays, each between two sockets, which end with the test."""

from __future__ import annotations

from typing import Callable, Iterator, List

import pytest

from tests.support.relaying import EACH_PAIR, Kinds, Relayed, on
from vsock_proxy.serving.relay import Relay

Join = Callable[..., Relayed]


@pytest.fixture
def begun() -> Iterator[Join]:
    """Begins relays, which end with the test."""
    joined: List[Relayed] = []

    def start(kinds: Kinds, relay: Relay | None = None, idle_timeout: float = 0.0) -> Relayed:
        joined.append(Relayed(relay, kinds, idle_timeout))
        return joined[-1]

    yield start
    for one in joined:
        one.close()


@pytest.fixture(params=[on(kinds) for kinds in EACH_PAIR])
def join(request: pytest.FixtureRequest, begun: Join) -> Join:
    """Joins a client and an endpoint by a relay, for each pair of transports."""
    return lambda *arguments, **options: begun(request.param, *arguments, **options)
