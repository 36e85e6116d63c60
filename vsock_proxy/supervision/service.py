"""A service as the master has it: what was asked for, and what was made for it.

Where a reload changes only where its clients are led to, the listener stays. Where the endpoint
stays too, so does the table: what is known of its addresses is still true.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.endpoint.addresses import AddressTable
from vsock_proxy.endpoint.policy import Policy
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.route import Route
from vsock_proxy.serving.upstream import Upstream
from vsock_proxy.settings import ServiceSettings
from vsock_proxy.supervision.judging import Judged, put_into_force


@dataclass(frozen=True)
class Service:
    """
    name: what the log and the titles call it where there are several.
    """

    settings: ServiceSettings
    name: str
    listener: Listener
    table: AddressTable
    policy: Policy

    @property
    def is_looked_up(self) -> bool:
        """Whether its addresses may change: those of a name, and of a zone's interface."""
        host = self.settings.endpoint.host
        return parse_address(host) is None or "%" in host

    def leads_elsewhere(self, settings: ServiceSettings) -> bool:
        """Whether a service with these settings has other addresses."""
        own = self.settings
        return (own.endpoint, own.options.family) != (settings.endpoint, settings.options.family)

    def route(self) -> Route:
        """What a worker needs of it."""
        options = self.settings.options
        return Route(
            name=self.name,
            listener=self.listener,
            endpoint=self.settings.endpoint,
            upstream=Upstream(self.table, options.connect_timeout),
            allowed_cids=options.allowed_cids,
            idle_timeout=options.idle_timeout,
        )

    def renewed(self, judged: Judged, name: str) -> Service:
        """The same service, by the policy and the settings that a reload has brought.

        No resolver may run meanwhile: it would publish by the policy from before.
        """
        put_into_force(judged, self.table)
        return replace(self, settings=judged.settings, name=name, policy=judged.policy)


def make_service(judged: Judged, name: str, listener: Listener) -> Service:
    """A service that there was not yet, or that leads elsewhere now."""
    table = AddressTable(judged.settings.endpoint.port)
    put_into_force(judged, table)
    return Service(judged.settings, name, listener, table, judged.policy)
