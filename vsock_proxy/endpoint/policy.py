"""Which addresses this proxy may connect to.

An endpoint that the allowlist names may have any address that DNS gives, with one exception. Some
addresses of a cloud instance give its credentials to whoever connects from there. An answer of DNS
never leads to these, in whatever form it writes them: whoever can answer for a name could otherwise
lead a guest there. An operator who wants such an address gives it as `<remote_addr>`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, replace
from typing import Iterable, List, Tuple

from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.config.endpoints import normal_place
from vsock_proxy.config.hostnames import NoHost, normal_name, parse_address
from vsock_proxy.endpoint.addresses import Address
from vsock_proxy.endpoint.embedding import embedded
from vsock_proxy.endpoint.lookup import LookupFailed, look_up
from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.settings import Endpoint, ServiceSettings

FORBIDDEN = tuple(
    ipaddress.ip_network(network)
    for network in (
        # Link-local (RFC 3927, RFC 4291): the metadata service of nearly every cloud, and the
        # credentials of containers on ECS and EKS.
        "169.254.0.0/16",
        "fe80::/10",
        # AWS: the metadata service and EKS Pod Identity.
        "fd00:ec2::254/128",
        "fd00:ec2::23/128",
        # The metadata services of Alibaba Cloud, Oracle (two), Azure, Google and Scaleway.
        "100.100.100.200/32",
        "192.0.0.192/32",
        "fd00:c1::a9fe:a9fe/128",
        "168.63.129.16/32",
        "fd20:ce::254/128",
        "fd00:42::42/128",
    )
)
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class NotPermitted(ConfigurationError):
    """The endpoint is not on the list."""


@dataclass(frozen=True)
class Policy:
    """What may be connected to for one endpoint under one allowlist."""

    endpoint: Endpoint
    family: socket.AddressFamily
    any_address: bool
    allowlist: Allowlist

    def permits(self, address: Address) -> bool:
        """Whether an address that DNS gave may be connected to."""
        ip = ipaddress.ip_address(address.sockaddr[0].split("%")[0])
        if any(form in network for form in (ip, *embedded(ip)) for network in FORBIDDEN):
            return False
        return self.any_address or self.allowlist.permits_address(ip, self.endpoint.port)

    def keeps(self, address: Address) -> bool:
        """Whether an address known from before may still be connected to."""
        if parse_address(self.endpoint.host) is not None:
            return True
        return self.family in (socket.AF_UNSPEC, address.family) and self.permits(address)

    def may_permit_addresses(self) -> bool:
        """Whether there is any address that would permit the endpoint, whatever DNS says."""
        if self.any_address:
            return True
        return self.endpoint.is_tcp and self.allowlist.has_addresses(self.endpoint.port)

    def permits_literal(self) -> bool:
        """Whether an endpoint that was given as an address may be connected to."""
        ip = parse_address(self.endpoint.host)
        return ip is not None and self.allowlist.permits_address(ip, self.endpoint.port)

    def choose(self, addresses: Iterable[Address]) -> Tuple[Address, ...]:
        """The permitted ones, the families taking turns (RFC 8305, 4)."""
        if parse_address(self.endpoint.host) is not None:
            # Not what DNS says, but the endpoint itself, with the index of its zone's interface.
            return tuple(addresses)
        permitted = [address for address in addresses if self.permits(address)]
        if not permitted:
            return ()
        first = [a for a in permitted if a.family == permitted[0].family]
        other = [a for a in permitted if a.family != permitted[0].family]
        turns: List[Address] = []
        for index in range(max(len(first), len(other))):
            turns += first[index : index + 1] + other[index : index + 1]
        return tuple(turns)


def make_policy(settings: ServiceSettings, allowlist: Allowlist) -> Policy:
    """The policy for the endpoint of a service."""
    endpoint = settings.endpoint
    permits = allowlist.permits_name if endpoint.is_tcp else allowlist.permits_place
    listed = permits(endpoint.host, endpoint.port)
    return Policy(endpoint, settings.options.family, listed, allowlist)


def literal_address(settings: ServiceSettings) -> Tuple[Address, ...]:
    """The endpoint's address if it was given as one, else nothing. Raises UsageError."""
    host = settings.endpoint.host
    ip = parse_address(host)
    if ip is None:
        return ()
    if settings.options.family not in (socket.AF_UNSPEC, FAMILIES[ip.version]):
        option = "-4" if settings.options.family == socket.AF_INET else "-6"
        raise UsageError(f"{host} is not an address of the family that {option} asks for")
    try:
        return tuple(look_up(replace(settings.endpoint, host=str(ip)), settings.options.family)[:1])
    except LookupFailed:
        # What can be wrong in a well-formed address is its zone (RFC 4007, 11).
        raise UsageError(
            f"{host} cannot be connected to: what follows % is no network interface of this machine"
        ) from None


def not_permitted(policy: Policy) -> NotPermitted:
    """The error that says what to add to the list."""
    port = policy.endpoint.port
    return NotPermitted(
        f"{policy.endpoint} is not permitted by {policy.allowlist.path}; to permit it add "
        f"'- {{address: {_as_yaml(policy.endpoint.host)}, port: {port}}}'"
    )


def _as_yaml(host: str) -> str:
    """The host as every YAML parser reads it: without a dot it may be `no`, a boolean."""
    ip = parse_address(host)
    try:
        text = normal_place(host) or (str(ip) if ip else normal_name(host))
    except NoHost:
        text = host
    if "." in text and ":" not in text:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    # Python's escapes are YAML's, too.
    return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in escaped) + '"'
