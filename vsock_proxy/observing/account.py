"""What was done since the start, by service and by pool, over reloads too.

The master keeps an account. It adds each pool that has ended, and each table that no service has
any more. So no total goes back when a pool is replaced or a service is removed. If a service of
that name comes back, its totals go on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple, TypeVar

from vsock_proxy.endpoint.addresses import AddressTable, Lookups
from vsock_proxy.observing.measures import Measured, Measures
from vsock_proxy.observing.scoreboard import Scoreboard
from vsock_proxy.settings import Endpoint

# The name of the pool that serves all services without workers of their own.
SHARED = "shared"


@dataclass(frozen=True)
class PoolView:
    """One pool.

    name: the service that has these workers of its own, or SHARED.
    services, endpoints, tables: one for each service; the table is None if nothing is looked up.
    """

    name: str
    services: Tuple[str, ...]
    endpoints: Tuple[Endpoint, ...]
    tables: Tuple[Optional[AddressTable], ...]
    board: Scoreboard
    measures: Measures


@dataclass(frozen=True)
class Tried:
    """When the last connect to an endpoint succeeded, and when one last failed, as in Measured."""

    endpoint: Endpoint
    connected: int
    failed: int

    def plus(self, later: Tried) -> Tried:
        """Both together; only what came later, if the endpoint of the service has changed."""
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
    saturated: by the name of the pool, the nanoseconds in which all its workers were busy.
    """

    services: Mapping[str, Measured] = field(default_factory=dict)
    tried: Mapping[str, Tried] = field(default_factory=dict)
    lookups: Mapping[str, Lookups] = field(default_factory=dict)
    saturated: Mapping[str, int] = field(default_factory=dict)

    def plus_pools(self, pools: Iterable[PoolView]) -> Account:
        """This account, and what was done in these pools."""
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
        """This account, and what was looked up for these services."""
        lookups = dict(self.lookups)
        for name, table in tables:
            _add(lookups, name, table.lookups)
        return replace(self, lookups=lookups)


@dataclass(frozen=True)
class Scene:
    """All that is seen of services and pools.

    pools: those in force. ending: those that others have replaced.
    before: what was done in pools that have ended.
    """

    pools: Sequence[PoolView]
    ending: Sequence[PoolView]
    before: Account

    def account(self) -> Account:
        """What was done up to now."""
        # In this order, because the newest endpoint of a service counts.
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
