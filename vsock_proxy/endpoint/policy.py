"""Which addresses this proxy may connect to.

An endpoint that the allowlist names may have any address that DNS gives, with one exception. Some
addresses give the credentials of a cloud instance to any program on it that connects to them. An
address from DNS is never one of these, in any form: an attacker who can answer for a name could
otherwise lead a guest there. An operator can still give such an address as `<remote_addr>`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, replace
from typing import Dict, Iterable, List, Optional, Tuple

from vsock_proxy.config.allowlist import Allowlist, Entry
from vsock_proxy.config.endpoints import normal_place
from vsock_proxy.config.hostnames import NoHost, normal_name, parse_address
from vsock_proxy.endpoint.addresses import Address
from vsock_proxy.endpoint.embedding import embedded
from vsock_proxy.endpoint.lookup import LookupFailed, look_up
from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.printable import printable
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
# By difflib: how alike two addresses are if one may be a misspelling of the other.
LIKENESS = 0.75


class NotPermitted(ConfigurationError):
    """The endpoint is not on the list."""


@dataclass(frozen=True)
class Policy:
    """The addresses that one allowlist permits for one endpoint."""

    endpoint: Endpoint
    family: socket.AddressFamily
    any_address: bool
    allowlist: Allowlist

    def permits(self, address: Address) -> bool:
        """Whether the proxy may connect to an address that DNS gave."""
        ip = ipaddress.ip_address(address.sockaddr[0].split("%")[0])
        if any(form in network for form in (ip, *embedded(ip)) for network in FORBIDDEN):
            return False
        return self.any_address or self.allowlist.permits_address(ip, self.endpoint.port)

    def keeps(self, address: Address) -> bool:
        """Whether the proxy may still connect to an address known from before."""
        if parse_address(self.endpoint.host) is not None:
            return True
        return self.family in (socket.AF_UNSPEC, address.family) and self.permits(address)

    def may_permit_addresses(self) -> bool:
        """Whether DNS can give any address that the proxy may connect to."""
        if self.any_address:
            return True
        return self.endpoint.is_tcp and self.allowlist.has_addresses(self.endpoint.port)

    def permits_literal(self) -> bool:
        """Whether the endpoint was given as an address and the list permits it."""
        ip = parse_address(self.endpoint.host)
        return ip is not None and self.allowlist.permits_address(ip, self.endpoint.port)

    def entry(self) -> Optional[Entry]:
        """The first entry that permits the endpoint itself; None if none does."""
        host, port = self.endpoint.host, self.endpoint.port
        if not self.endpoint.is_tcp:
            return self.allowlist.entry_of_place(host, port)
        ip = parse_address(host)
        if ip is not None:
            return self.allowlist.entry_of_address(ip, port)
        return self.allowlist.entry_of_name(host, port)

    def entry_of(self, address: Address) -> Optional[Entry]:
        """The first entry that permits an address."""
        ip = ipaddress.ip_address(address.sockaddr[0].split("%")[0])
        return self.allowlist.entry_of_address(ip, self.endpoint.port)

    def choose(self, addresses: Iterable[Address]) -> Tuple[Address, ...]:
        """The permitted addresses; the families take turns (RFC 8305, 4)."""
        if parse_address(self.endpoint.host) is not None:
            # It is the endpoint itself and not from DNS, with the index of its zone's interface.
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
    """The endpoint's address if it was given as an address, else nothing. Raises UsageError."""
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
        # In a well-formed address only the zone can be wrong (RFC 4007, 11).
        raise UsageError(
            f"cannot connect to {host}: what follows % is not a network interface of this machine"
        ) from None


def not_permitted(policy: Policy) -> NotPermitted:
    """The error that says what to add to the list."""
    port = policy.endpoint.port
    closest = _closest(policy)
    near = "" if closest is None else f"; the closest entry is {described(closest)}"
    return NotPermitted(
        f"{policy.endpoint} is not permitted by {policy.allowlist.path}{near}; to permit it add "
        f"'- {{address: {_as_yaml(policy.endpoint.host)}, port: {port}}}'"
    )


def described(entry: Entry) -> str:
    """An entry of the list, for the operator."""
    where = f" in line {entry.line}" if entry.line else ""
    return f"{entry.address!r}, port {entry.port}{where}"


def _closest(policy: Policy) -> Optional[Entry]:
    """The entry that looks most like the endpoint; it may have been meant. None if none does."""
    # Imported here: only a process that will end needs it.
    from difflib import get_close_matches

    by_text: Dict[str, Entry] = {}
    for entry in policy.allowlist.entries:
        # An endpoint has no prefix length.
        text = str(entry.network.network_address) if entry.network else entry.address
        known = by_text.get(text)
        if known is None or entry.port == policy.endpoint.port != known.port:
            by_text[text] = entry
    found = get_close_matches(_normal(policy.endpoint.host), by_text, n=1, cutoff=LIKENESS)
    return by_text[found[0]] if found else None


def _as_yaml(host: str) -> str:
    """The host so that every YAML parser reads it: unquoted, a host `no` would be a boolean."""
    text = _normal(host)
    if "." in text and ":" not in text:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    # Python's escapes are YAML's, too.
    return f'"{printable(escaped)}"'


def _normal(host: str) -> str:
    """The host in the form in which it is compared, if it has one."""
    ip = parse_address(host)
    try:
        return normal_place(host) or (str(ip) if ip else normal_name(host))
    except NoHost:
        return host
