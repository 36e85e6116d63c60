"""What was done since the start, by service and by pool, over reloads too.

A pool that has ended and a table that no service has any more are added to an account, which the
master keeps. So no total goes back when a pool is replaced or a service is gone; if a service of
that name comes back, it goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple, TypeVar

from vsock_proxy.endpoint.addresses import AddressTable, Lookups
from vsock_proxy.observing.measures import Measured, Measures
from vsock_proxy.observing.scoreboard import Scoreboard
from vsock_proxy.settings import Endpoint

# What the pool is called whose workers serve all services that have none of their own.
SHARED = "shared"


@dataclass(frozen=True)
class PoolView:
    """One pool.

    name: that of the service that has these workers of its own, or SHARED.
    services, endpoints, tables: one for each service; without a table where nothing is looked up.
    """

    name: str
    services: Tuple[str, ...]
    endpoints: Tuple[Endpoint, ...]
    tables: Tuple[Optional[AddressTable], ...]
    board: Scoreboard
    measures: Measures


@dataclass(frozen=True)
class Tried:
    """When an endpoint was last connected to, and when that last failed, as in Measured."""

    endpoint: Endpoint
    connected: int
    failed: int

    def plus(self, later: Tried) -> Tried:
        """Both together, unless the service leads elsewhere now: then only what came later."""
        if later.endpoint != self.endpoint:
            return later
        return Tried(
            self.endpoint,
            max(self.connected, later.connected),
            max(self.failed, later.failed),
        )


@dataclass(frozen=True)
class Account:
    """
    services, tried, lookups: by the name of the service.
    saturated: by the name of the pool, for how many nanoseconds all its workers were busy.
    """

    services: Mapping[str, Measured] = field(default_factory=dict)
    tried: Mapping[str, Tried] = field(default_factory=dict)
    lookups: Mapping[str, Lookups] = field(default_factory=dict)
    saturated: Mapping[str, int] = field(default_factory=dict)

    def plus_pools(self, pools: Iterable[PoolView]) -> Account:
        """This, and what was done in these pools."""
        services, tried = dict(self.services), dict(self.tried)
        saturated = dict(self.saturated)
        for pool in pools:
            saturated[pool.name] = saturated.get(pool.name, 0) + pool.board.saturated
            for name, endpoint, measured in zip(
                pool.services, pool.endpoints, pool.measures.read()
            ):
                _add(services, name, measured)
                _add(tried, name, Tried(endpoint, measured.connected, measured.failed))
        return replace(self, services=services, tried=tried, saturated=saturated)

    def plus_lookups(self, tables: Iterable[Tuple[str, AddressTable]]) -> Account:
        """This, and what was looked up for these services."""
        lookups = dict(self.lookups)
        for name, table in tables:
            _add(lookups, name, table.lookups)
        return replace(self, lookups=lookups)


@dataclass(frozen=True)
class Scene:
    """All there is to see of services and pools.

    pools: those in force. ending: those whose place others have taken.
    before: what was done in pools that have ended.
    """

    pools: Sequence[PoolView]
    ending: Sequence[PoolView]
    before: Account

    def account(self) -> Account:
        """What was done up to now."""
        # In this order: where a service leads now is what counts.
        return self.before.plus_pools([*self.ending, *self.pools]).plus_lookups(
            (name, table)
            for pool in self.pools
            for name, table in zip(pool.services, pool.tables)
            if table is not None
        )


Sum = TypeVar("Sum", Measured, Tried, Lookups)


def _add(sums: Dict[str, Sum], name: str, more: Sum) -> None:
    known = sums.get(name)
    sums[name] = more if known is None else known.plus(more)
