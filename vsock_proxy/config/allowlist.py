"""The allowlist: which endpoints this proxy may be started for.

The file is that of AWS's vsock-proxy. It is read at start and on SIGHUP, never while a
connection is being made. An entry that can never permit anything is an error, since whoever wrote
it meant something by it.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import Dict, Iterable, List, Optional, Tuple, Union

import yaml

from vsock_proxy.config import config_file, yaml_nodes
from vsock_proxy.config.hostnames import Address, NoHost, is_zone, normal_name
from vsock_proxy.config.yaml_nodes import line_of
from vsock_proxy.errors import ConfigurationError

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

# Seconds for the writer of a pipe that is read at start.
PATIENCE = 30.0
KNOWN_KEYS = ("address", "port")
INTEGER_TAG = "tag:yaml.org,2002:int"
# What a plain scalar may look like to YAML 1.1 and still be meant as an address: 1:2:3:4:5:6:7:8
# is a base-60 integer to it.
TEXT_TAGS = ("tag:yaml.org,2002:str", INTEGER_TAG, "tag:yaml.org,2002:float")
DECIMAL = re.compile(r"\+?[1-9][0-9]{0,4}")
# Of IPv6, with a zone and a prefix length or mask.
LONGEST_NETWORK = 100
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
EXPECTED_ADDRESS = (
    "expected a host name, *.DOMAIN, an IP address or a network such as 10.0.0.0/8 with no host "
    "bits set"
)
# Warnings of unknown keys, of which one file may have many thousands.
MOST_WARNINGS = 10
MOST_FOREIGN_NAMES = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One permitted endpoint; exactly one of name, suffix and network is set.

    zone: the one that the network is in, None for any (RFC 4007).
    """

    port: int
    name: Optional[str] = None
    suffix: Optional[str] = None
    network: Optional[Network] = None
    zone: Optional[str] = None

    def permits_name(self, name: str) -> bool:
        return self.name == name or (self.suffix is not None and name.endswith(self.suffix))


@dataclass(frozen=True)
class Allowlist:
    """What the file permits."""

    path: str
    entries: Tuple[Entry, ...]

    def permits_name(self, host: str, port: int) -> bool:
        """Whether a host name, as text, is permitted; needs no DNS."""
        try:
            name = normal_name(host)
        except NoHost:
            return False
        return any(entry.port == port and entry.permits_name(name) for entry in self.entries)

    def permits_address(self, address: Address, port: int) -> bool:
        """Whether an address is that of an entry or within the network of one."""
        version, number = address.version, int(address)
        zone = getattr(address, "scope_id", None)
        return any(
            number & mask == network
            and family == version
            and (wanted is None or _same_zone(wanted, zone))
            for family, mask, network, wanted in self._networks.get(port, ())
        )

    @cached_property
    def _networks(self) -> Dict[int, List[Tuple[int, int, int, Optional[str]]]]:
        """By port, each network as IP version, mask, number and zone.

        Numbers, since on a reload the master may have to compare 64 addresses with 10,000 networks
        and must not be away for a second.
        """
        found: Dict[int, List[Tuple[int, int, int, Optional[str]]]] = {}
        for entry in self.entries:
            network = entry.network
            if network is not None:
                numbers = network.version, int(network.netmask), int(network.network_address)
                found.setdefault(entry.port, []).append((*numbers, entry.zone))
        return found


def load(path: str, patience: float = PATIENCE) -> Allowlist:
    """Read the file. Raises ConfigurationError: one line with file, line, value, expectation.

    patience: seconds for the writer of a pipe; 0: only a regular file will do.
    """
    root = _compose(path, _read(path, patience))
    warnings = _Warnings(path)
    entries = _entries(path, root, warnings)
    warnings.end()
    return Allowlist(path, tuple(entries))


class _Warnings:
    """Says of which keys nothing is made, a bounded number of times."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._count = 0

    def unknown(self, key: yaml.Node) -> None:
        self._count += 1
        if self._count <= MOST_WARNINGS:
            where = f"allowlist {self._path}, line {line_of(key)}"
            log.warning("%s: unknown key %s ignored", where, _shown(key))

    def end(self) -> None:
        more = self._count - MOST_WARNINGS
        if more > 0:
            log.warning("allowlist %s: %d more unknown keys ignored", self._path, more)


def _read(path: str, patience: float) -> str:
    try:
        return config_file.read(path, patience).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"allowlist {path}, line {line}: byte 0x{error.object[error.start]:02x} is not "
            "UTF-8; save the file as UTF-8"
        ) from None
    except config_file.Unreadable as error:
        raise ConfigurationError(
            f"allowlist {path}: {error}; name another file with --config"
        ) from None


def _compose(path: str, text: str) -> yaml.Node:
    try:
        root = yaml_nodes.compose(text)
    except yaml_nodes.Malformed as error:
        where = "" if error.line is None else f", line {error.line}"
        raise ConfigurationError(f"allowlist {path}{where}: {error}") from None
    if root is None:
        raise ConfigurationError(f"allowlist {path}: empty; expected 'allowlist:' and a list")
    return root


def _entries(path: str, root: yaml.Node, warnings: _Warnings) -> List[Entry]:
    if not isinstance(root, yaml.MappingNode):
        raise _malformed(path, root, f"{_shown(root)} where 'allowlist:' is expected")
    found = None
    for key, value in root.value:
        if key.value == "allowlist":
            if found is not None:
                raise _malformed(path, key, "a second 'allowlist:'; put all endpoints in one list")
            found = value
        else:
            warnings.unknown(key)
    if found is None:
        raise _malformed(path, root, "no 'allowlist:' key; expected it with a list of endpoints")
    if not isinstance(found, yaml.SequenceNode):
        raise _malformed(path, found, f"allowlist is {_shown(found)}; expected a list of endpoints")
    # An alias makes one node an entry many thousands of times; each node is looked at once.
    nodes = {id(node): node for node in found.value}.values()
    _check_foreign(path, nodes)
    return [_entry(path, node, warnings) for node in nodes]


def _check_foreign(path: str, nodes: Iterable[yaml.Node]) -> None:
    """Bound the time that IDNA takes: a quarter of a second for as many as are permitted."""
    count = 0
    for node in nodes:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for _, value in pairs:
            if isinstance(value, yaml.ScalarNode) and not value.value.isascii():
                count += 1
                if count > MOST_FOREIGN_NAMES:
                    raise _malformed(
                        path,
                        node,
                        f"more than {MOST_FOREIGN_NAMES} names that are not ASCII; write them as "
                        "IDNA does, xn--...",
                    )


def _entry(path: str, node: yaml.Node, warnings: _Warnings) -> Entry:
    if not isinstance(node, yaml.MappingNode):
        raise _malformed(
            path, node, f"entry is {_shown(node)}; expected {{address: HOST, port: N}}"
        )
    values: Dict[str, yaml.Node] = {}
    for key, value in node.value:
        if isinstance(key.value, str) and key.value in KNOWN_KEYS:
            if key.value in values:
                raise _malformed(path, key, f"a second {key.value} in one entry; expected one")
            values[key.value] = value
        else:
            warnings.unknown(key)
    for key in KNOWN_KEYS:
        if key not in values:
            raise _malformed(path, node, f"entry without {key}; expected address and port")
    return _permitted(path, values["address"], _port(path, values["port"]))


def _port(path: str, node: yaml.Node) -> int:
    is_integer = isinstance(node, yaml.ScalarNode) and node.tag == INTEGER_TAG
    # Not the octal, binary and base-60 integers of YAML 1.1.
    if is_integer and DECIMAL.fullmatch(node.value) and int(node.value) <= 65535:
        return int(node.value)
    raise _malformed(path, node, f"port is {_shown(node)}; expected an integer from 1 to 65535")


def _permitted(path: str, node: yaml.Node, port: int) -> Entry:
    text = node.value if isinstance(node, yaml.ScalarNode) and node.tag in TEXT_TAGS else ""
    entry = _network_entry(text, port)
    if entry is not None:
        return entry
    wildcard = text.startswith("*.")
    try:
        name = normal_name(text[2:] if wildcard else text)
    except NoHost as error:
        why = error.reason if wildcard else error
        raise _malformed(
            path, node, f"address is {_shown(node)}, which {why}; {EXPECTED_ADDRESS}"
        ) from None
    return Entry(port, suffix=f".{name}") if wildcard else Entry(port, name=name)


def _network_entry(text: str, port: int) -> Optional[Entry]:
    """The entry for an address or a network, None for any other text."""
    if len(text) > LONGEST_NETWORK:
        return None
    try:
        network = ipaddress.ip_network(text)
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


def _malformed(path: str, node: yaml.Node, problem: str) -> ConfigurationError:
    return ConfigurationError(f"allowlist {path}, line {line_of(node)}: {problem}")


def _shown(node: yaml.Node) -> str:
    """A node's value as it stands in the file, short and escaped."""
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("'", '"'):
            return f"the text {node.value[:60]!r}"
        return repr(node.value[:60]) if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
