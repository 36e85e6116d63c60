"""A service in the master: its settings, and what was made for it.

If a reload changes only the endpoint of a service, the listener stays. If the endpoint stays too,
the table also stays, because what it knows of the addresses is still true.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Tuple

from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.endpoint.addresses import Address, AddressTable
from vsock_proxy.endpoint.policy import Policy
from vsock_proxy.serving.hybrid_upstream import HybridUpstream
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.route import AnyUpstream, Route
from vsock_proxy.serving.upstream import Upstream
from vsock_proxy.serving.vsock_upstream import VsockUpstream
from vsock_proxy.settings import Endpoint, ServiceSettings
from vsock_proxy.supervision.judging import Judged, put_into_force


@dataclass(frozen=True)
class Service:
    """
    name: what the log and the titles call it where there are several.
    table: the addresses of its endpoint; None: the endpoint is not reached by an address.
    """

    settings: ServiceSettings
    name: str
    listener: Listener
    table: Optional[AddressTable]
    policy: Policy

    @property
    def is_looked_up(self) -> bool:
        """Whether its addresses may change: if it is a name, or an address with a zone."""
        endpoint = self.settings.endpoint
        host = endpoint.host
        return endpoint.is_tcp and (parse_address(host) is None or "%" in host)

    @property
    def addresses(self) -> Tuple[Address, ...]:
        """The known addresses of its endpoint."""
        return self.table.current() if self.table is not None else ()

    def leads_elsewhere(self, settings: ServiceSettings) -> bool:
        """Whether a service with these settings needs another table of addresses."""
        own = self.settings
        return (own.endpoint, own.options.family) != (settings.endpoint, settings.options.family)

    def route(self) -> Route:
        """What a worker needs to serve it."""
        options = self.settings.options
        return Route(
            name=self.name,
            listener=self.listener,
            endpoint=self.settings.endpoint,
            upstream=upstream_of(self.settings.endpoint, self.table, options.connect_timeout),
            allowed_cids=options.allowed_cids,
            idle_timeout=options.idle_timeout,
        )

    def renewed(self, judged: Judged, name: str) -> Service:
        """The same service, with the policy and the settings of a reload."""
        return replace(self, settings=judged.settings, name=name, policy=judged.policy)

    def publish(self, judged: Judged) -> None:
        """Let its table have the addresses permitted now, and nothing else.

        No resolver may run meanwhile: it would publish by the policy from before.
        """
        if self.table is not None:
            put_into_force(judged, self.table)

    def close_table(self) -> None:
        """Close the descriptors of its table."""
        if self.table is not None:
            self.table.close()


def upstream_of(endpoint: Endpoint, table: Optional[AddressTable], timeout: float) -> AnyUpstream:
    """What connects to an endpoint. table: its addresses; None: it is not reached by an address."""
    if table is not None:
        return Upstream(table, timeout)
    if endpoint.path is not None:
        return HybridUpstream(endpoint, timeout)
    return VsockUpstream(endpoint, timeout)


def make_service(judged: Judged, name: str, listener: Listener) -> Service:
    """A service that is new, or whose endpoint is new."""
    endpoint = judged.settings.endpoint
    table = AddressTable(endpoint.port) if endpoint.is_tcp else None
    return Service(judged.settings, name, listener, table, judged.policy)
