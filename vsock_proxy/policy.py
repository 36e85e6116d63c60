"""Which addresses this proxy may connect to: the allowlist, the family, and no metadata service.

An endpoint that the allowlist names may be any address that DNS says, except where no service of
that name can be but the credentials of the instance are: the link-local ranges, with the instance
metadata service (169.254.169.254 and fd00:ec2::254). Who wants such an address names it itself.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Callable, Iterable, List, Tuple

from vsock_proxy.addresses import Address, make_address
from vsock_proxy.allowlist import Address as IPAddress
from vsock_proxy.allowlist import Allowlist, parse_address
from vsock_proxy.errors import ConfigurationError, TryAgainError, UsageError
from vsock_proxy.settings import Endpoint, Settings

FORBIDDEN = tuple(
    ipaddress.ip_network(network)
    for network in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")
)
# IPv6 addresses whose low 32 bits are an IPv4 address that they lead to: IPv4-mapped (RFC 4291),
# IPv4-compatible (RFC 4291) and NAT64 (RFC 6052).
EMBEDDING = tuple(
    ipaddress.ip_network(network) for network in ("::ffff:0:0/96", "::/96", "64:ff9b::/96")
)
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class LookupFailed(Exception):
    """The name has no address at the moment; the text says why."""


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
        if any(form in network for form in (ip, *_embedded(ip)) for network in FORBIDDEN):
            return False
        return self.any_address or self.allowlist.permits_address(ip, self.endpoint.port)

    def permits_literal(self) -> bool:
        """Whether an endpoint that was given as an address may be connected to."""
        ip = ipaddress.ip_address(self.endpoint.host)
        return self.any_address or self.allowlist.permits_address(ip, self.endpoint.port)

    def choose(self, addresses: Iterable[Address]) -> Tuple[Address, ...]:
        """The permitted ones, the families taking turns (RFC 8305, 4)."""
        permitted = [address for address in addresses if self.permits(address)]
        if not permitted:
            return ()
        first = [a for a in permitted if a.family == permitted[0].family]
        other = [a for a in permitted if a.family != permitted[0].family]
        turns: List[Address] = []
        for index in range(max(len(first), len(other))):
            turns += first[index : index + 1] + other[index : index + 1]
        return tuple(turns)


def make_policy(settings: Settings, allowlist: Allowlist) -> Policy:
    """The policy for the endpoint of this run."""
    endpoint = settings.endpoint
    by_name = allowlist.permits_name(endpoint.host, endpoint.port)
    return Policy(endpoint, settings.family, by_name, allowlist)


def literal_address(settings: Settings) -> Tuple[Address, ...]:
    """The endpoint's address if it was given as one, else nothing. Raises UsageError."""
    host = settings.endpoint.host
    ip = parse_address(host)
    if ip is None:
        return ()
    if settings.family not in (socket.AF_UNSPEC, FAMILIES[ip.version]):
        option = "-4" if settings.family == socket.AF_INET else "-6"
        raise UsageError(f"{host} is not an address of the family that {option} asks for")
    try:
        return tuple(look_up(settings.endpoint, settings.family)[:1])
    except LookupFailed:
        # What can be wrong in a well-formed address is its zone (RFC 4007, 11).
        raise UsageError(
            f"{host} cannot be connected to: what follows % is no network interface of this machine"
        ) from None


def first_addresses(
    settings: Settings,
    policy: Policy,
    look_up: Callable[[Endpoint, socket.AddressFamily], List[Address]],
) -> Tuple[Address, ...]:
    """Judge the endpoint at start: the addresses known at once, none where DNS can be awaited.

    look_up: asks for the addresses of a name, if they are needed; raises LookupFailed.

    Raises ConfigurationError if the endpoint is not permitted, and TryAgainError if only its
    addresses could permit it and the name does not resolve yet.
    """
    endpoint = policy.endpoint
    literal = literal_address(settings)
    if literal:
        if policy.permits_literal():
            return literal
        raise not_permitted(policy)
    if policy.any_address:
        return ()
    try:
        found = look_up(endpoint, policy.family)
    except LookupFailed as error:
        raise TryAgainError(
            f"{policy.allowlist.path} does not name {endpoint}, so its addresses must be judged, "
            f"and {endpoint.host} does not resolve: {error}"
        ) from None
    permitted = policy.choose(found)
    if not permitted:
        raise not_permitted(policy)
    return permitted


def not_permitted(policy: Policy) -> ConfigurationError:
    """The endpoint is not on the list."""
    host, port = policy.endpoint.host, policy.endpoint.port
    return ConfigurationError(
        f"{policy.endpoint} is not permitted by {policy.allowlist.path}; to permit it add "
        f"'- {{address: {host}, port: {port}}}'"
    )


def look_up(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
    """Ask the system's resolver, which may take long. Raises LookupFailed."""
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, family, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )
    except OSError as error:
        raise LookupFailed(error.strerror or str(error)) from None
    except UnicodeError:
        raise LookupFailed("not a valid host name") from None
    addresses: List[Address] = []
    for found_family, _, _, _, sockaddr in found:
        address = make_address(found_family, sockaddr)  # type: ignore[arg-type]
        if address not in addresses:
            addresses.append(address)
    return addresses


def _embedded(ip: IPAddress) -> Tuple[IPAddress, ...]:
    if any(ip in network for network in EMBEDDING):
        return (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF),)
    return ()
