"""The allowlist: which endpoints this proxy may be started for.

The file has the format of AWS's vsock-proxy. It is read at start and on SIGHUP, never while a
connection is being made. An entry that can never permit anything is an error, because its author
wanted to permit something.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Dict, Iterable, List, Optional, Tuple, Union

import yaml

from vsock_proxy.config.endpoints import EVERY_CID, normal_place, port_rule
from vsock_proxy.config.hostnames import Address, NoHost, is_zone, normal_name
from vsock_proxy.config.rules import Unfit
from vsock_proxy.config.unknown_keys import UnknownKeys
from vsock_proxy.config.yaml_nodes import line_of
from vsock_proxy.config.yaml_values import Fault, number, shown, text
from vsock_proxy.settings import VSOCK_PREFIX

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

KNOWN_KEYS = ("address", "port")
# Characters: an IPv6 network with a zone and a prefix length or mask.
LONGEST_NETWORK = 100
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
EXPECTED_ADDRESS = (
    "expected a host name, *.DOMAIN, an IP address, a network such as 10.0.0.0/8 with no host bits "
    "set, vsock:CID, vsock:* or unix:PATH"
)
MOST_FOREIGN_NAMES = 1000


@dataclass(frozen=True)
class Entry:
    """One permitted endpoint; exactly one of name, suffix, network and place is set.

    zone: the zone of the network; None: any zone (RFC 4007).
    place: `vsock:CID`, `vsock:*` or `unix:PATH`.
    line: its line in the file; 0: none. It does not change what is permitted.
    """

    port: int
    name: Optional[str] = None
    suffix: Optional[str] = None
    network: Optional[Network] = None
    zone: Optional[str] = None
    place: Optional[str] = None
    line: int = field(default=0, compare=False)

    def permits_name(self, name: str) -> bool:
        return self.name == name or (self.suffix is not None and name.endswith(self.suffix))

    @property
    def address(self) -> str:
        """The text in the file, in the one form for comparison."""
        if self.suffix is not None:
            return f"*{self.suffix}"
        network = self.network
        if network is None:
            return self.name or self.place or ""
        # The text of an address has its zone, that of a network does not.
        host = str(network.network_address).partition("%")[0]
        zone = "" if self.zone is None else f"%{self.zone}"
        return f"{host}{zone}" if self._is_one_address else f"{host}{zone}/{network.prefixlen}"

    @property
    def kind(self) -> str:
        """The kind of entry, in a word."""
        if self.place is not None:
            if self.place == EVERY_CID:
                return "wildcard"
            return "CID" if self.place.startswith(VSOCK_PREFIX) else "path"
        if self.network is not None:
            return "address" if self._is_one_address else "network"
        return "name" if self.suffix is None else "wildcard"

    @property
    def _is_one_address(self) -> bool:
        network = self.network
        return network is not None and network.prefixlen == network.max_prefixlen


@dataclass(frozen=True)
class Allowlist:
    """What the file permits."""

    path: str
    entries: Tuple[Entry, ...]

    def permits_name(self, host: str, port: int) -> bool:
        """Whether the text of a host name is permitted. Asks no DNS."""
        return self.entry_of_name(host, port) is not None

    def entry_of_name(self, host: str, port: int) -> Optional[Entry]:
        """The first entry that permits a host name; None if none does."""
        try:
            name = normal_name(host)
        except NoHost:
            return None
        found = (entry for entry in self.entries if entry.port == port and entry.permits_name(name))
        return next(found, None)

    def permits_place(self, text: str, port: int) -> bool:
        """Whether `vsock:CID` or `unix:PATH` is permitted."""
        return self.entry_of_place(text, port) is not None

    def entry_of_place(self, text: str, port: int) -> Optional[Entry]:
        """The first entry that permits such a place; None if none does."""
        place = normal_place(text)
        places = (place, EVERY_CID) if text.startswith(VSOCK_PREFIX) else (place,)
        found = (entry for entry in self.entries if entry.port == port and entry.place in places)
        return next(found, None)

    def permits_address(self, address: Address, port: int) -> bool:
        """Whether an entry has this address, or a network that contains it."""
        return self.entry_of_address(address, port) is not None

    def entry_of_address(self, address: Address, port: int) -> Optional[Entry]:
        """The first such entry; None if there is none."""
        version, number = address.version, int(address)
        zone = getattr(address, "scope_id", None)
        found = (
            entry
            for family, mask, network, entry in self._networks.get(port, ())
            if number & mask == network
            and family == version
            and (entry.zone is None or _same_zone(entry.zone, zone))
        )
        return next(found, None)

    def has_addresses(self, port: int) -> bool:
        """Whether any address is permitted for a port."""
        return port in self._networks

    @cached_property
    def _networks(self) -> Dict[int, List[Tuple[int, int, int, Entry]]]:
        """By port: IP version, mask and number of each network, and its entry.

        These are numbers because on a reload the master may have to compare 64 addresses with
        10,000 networks, and must not be away for a second.
        """
        found: Dict[int, List[Tuple[int, int, int, Entry]]] = {}
        for entry in self.entries:
            network = entry.network
            if network is not None:
                numbers = network.version, int(network.netmask), int(network.network_address)
                found.setdefault(entry.port, []).append((*numbers, entry))
        return found


def entries(node: yaml.Node, unknown: UnknownKeys) -> Tuple[Entry, ...]:
    """What is permitted by the value of the key `allowlist`. Raises Fault."""
    if not isinstance(node, yaml.SequenceNode):
        raise Fault(node, f"allowlist is {shown(node)}; expected a list of endpoints")
    # Aliases can make one node an entry thousands of times. Each node is looked at once.
    nodes = {id(node): node for node in node.value}.values()
    _check_foreign(nodes)
    return tuple(replace(_entry(node, unknown), line=line_of(node)) for node in nodes)


def _check_foreign(nodes: Iterable[yaml.Node]) -> None:
    """Limit the time that IDNA takes: a quarter of a second for the most names permitted."""
    count = 0
    for node in nodes:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for _, value in pairs:
            if isinstance(value, yaml.ScalarNode) and not value.value.isascii():
                count += 1
                if count > MOST_FOREIGN_NAMES:
                    raise Fault(
                        node,
                        f"more than {MOST_FOREIGN_NAMES} names that are not ASCII; write them as "
                        "IDNA does, xn--...",
                    )


def _entry(node: yaml.Node, unknown: UnknownKeys) -> Entry:
    if not isinstance(node, yaml.MappingNode):
        raise Fault(node, f"entry is {shown(node)}; expected {{address: HOST, port: N}}")
    values: Dict[str, yaml.Node] = {}
    for key, value in node.value:
        if isinstance(key.value, str) and key.value in KNOWN_KEYS:
            if key.value in values:
                raise Fault(key, f"a second {key.value} in one entry; expected one")
            values[key.value] = value
        else:
            unknown.ignore(key)
    for key in KNOWN_KEYS:
        if key not in values:
            raise Fault(node, f"entry without {key}; expected address and port")
    address = values["address"]
    return _permitted(address, _port(values["port"], text(address) or ""))


def _port(node: yaml.Node, address: str) -> int:
    try:
        return port_rule(address).parse(number(node))
    except Unfit as error:
        raise Fault(node, f"port is {shown(node)}; expected {error}") from None


def _permitted(node: yaml.Node, port: int) -> Entry:
    written = text(node) or ""
    entry = _network_entry(written, port)
    if entry is not None:
        return entry
    wildcard = written.startswith("*.")
    try:
        place = written if written == EVERY_CID else normal_place(written)
        if place is not None:
            return Entry(port, place=place)
        name = normal_name(written[2:] if wildcard else written)
    except NoHost as error:
        why = error.reason if wildcard else error
        raise Fault(node, f"address is {shown(node)}, which {why}; {EXPECTED_ADDRESS}") from None
    return Entry(port, suffix=f".{name}") if wildcard else Entry(port, name=name)


def _network_entry(written: str, port: int) -> Optional[Entry]:
    """The entry for an address or a network, None for any other text."""
    if len(written) > LONGEST_NETWORK:
        return None
    try:
        network = ipaddress.ip_network(written)
    except ValueError:
        return None
    zone = getattr(network.network_address, "scope_id", None)
    mapped = isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED)
    if zone is not None and (mapped or not is_zone(zone)):
        return None
    if mapped:
        # IPv4 mapped into IPv6 is IPv4.
        low = int(network.network_address) & 0xFFFFFFFF
        network = ipaddress.IPv4Network((low, network.prefixlen - 96))
    return Entry(port, network=network, zone=zone)


def _same_zone(one: str, other: Optional[str]) -> bool:
    """Whether two texts mean one zone: the name of an interface, or its number."""
    return other is not None and (one == other or _zone_number(one) == _zone_number(other))


def _zone_number(zone: str) -> Union[int, str]:
    try:
        return int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except (OSError, ValueError):
        return zone
