"""The allowlist: which endpoints this proxy may be started for.

The file is that of AWS's vsock-proxy. It is read at start and on SIGHUP, never while a
connection is being made. YAML is composed to nodes instead of constructed to objects: nodes keep
the line of each value, which an error message must name, and nothing in the file is ever
executed or expanded.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple, Union

import yaml

from vsock_proxy.errors import ConfigurationError

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

MAX_FILE_SIZE = 1 << 20
KNOWN_KEYS = ("address", "port")
INTEGER_TAG = "tag:yaml.org,2002:int"
# What a plain scalar may look like to YAML 1.1 and still be meant as an address: 1:2:3:4:5:6:7:8
# is a base-60 integer to it.
TEXT_TAGS = ("tag:yaml.org,2002:str", INTEGER_TAG, "tag:yaml.org,2002:float")
# libyaml's parser, where PyYAML was built with it, reads the default file in a tenth of the time.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One permitted endpoint; exactly one of name, suffix and network is set."""

    port: int
    name: Optional[str] = None
    suffix: Optional[str] = None
    network: Optional[Network] = None


@dataclass(frozen=True)
class Allowlist:
    """What the file permits."""

    path: str
    entries: Tuple[Entry, ...]

    def permits_name(self, host: str, port: int) -> bool:
        """Whether a host name, as text, is permitted; needs no DNS."""
        name = normal_name(host)
        return any(
            entry.port == port
            and (entry.name == name or (entry.suffix is not None and name.endswith(entry.suffix)))
            for entry in self.entries
        )

    def permits_address(self, address: Address, port: int) -> bool:
        """Whether an address is that of an entry or within the network of one."""
        return any(
            entry.port == port and entry.network is not None and address in entry.network
            for entry in self.entries
        )


def load(path: str) -> Allowlist:
    """Read the file. Raises ConfigurationError: one line with file, line, value, expectation."""
    return Allowlist(path, tuple(_entries(path, _compose(path, _read(path)))))


def normal_name(host: str) -> str:
    """A host name in the one form it is compared in: lower case, no final dot, IDNA (RFC 5890)."""
    name = host.rstrip(".").lower()
    if name.isascii():
        return name
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def parse_address(host: str) -> Optional[Address]:
    """The address that a text is, or None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
        if len(content) > MAX_FILE_SIZE:
            raise ConfigurationError(f"allowlist {path}: larger than {MAX_FILE_SIZE} bytes")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"allowlist {path}, line {line}: byte 0x{error.object[error.start]:02x} is not "
            "UTF-8; save the file as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            f"allowlist {path}: {reason}; name another file with --config"
        ) from None


def _compose(path: str, text: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigurationError(
            f"allowlist {path}{where}: not valid YAML: {error.problem or error.context}"
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(f"allowlist {path}: not valid YAML: {reason}") from None
    if root is None:
        raise ConfigurationError(f"allowlist {path}: empty; expected 'allowlist:' and a list")
    return root


def _entries(path: str, root: yaml.Node) -> List[Entry]:
    if not isinstance(root, yaml.MappingNode):
        raise _malformed(path, root, f"{_shown(root)} where 'allowlist:' is expected")
    found = None
    for key, value in root.value:
        if key.value == "allowlist":
            if found is not None:
                raise _malformed(path, key, "a second 'allowlist:'; put all endpoints in one list")
            found = value
        else:
            _warn_unknown(path, key)
    if found is None:
        raise _malformed(path, root, "no 'allowlist:' key; expected it with a list of endpoints")
    if not isinstance(found, yaml.SequenceNode):
        raise _malformed(path, found, f"allowlist is {_shown(found)}; expected a list of endpoints")
    return [_entry(path, node) for node in found.value]


def _entry(path: str, node: yaml.Node) -> Entry:
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
            _warn_unknown(path, key)
    for key in KNOWN_KEYS:
        if key not in values:
            raise _malformed(path, node, f"entry without {key}; expected address and port")
    return _permitted(path, values["address"], _port(path, values["port"]))


def _port(path: str, node: yaml.Node) -> int:
    if isinstance(node, yaml.ScalarNode) and node.tag == INTEGER_TAG:
        try:
            port = int(node.value)
        except ValueError:  # an octal, binary or base-60 integer of YAML 1.1
            port = 0
        if 1 <= port <= 65535:
            return port
    raise _malformed(path, node, f"port is {_shown(node)}; expected an integer from 1 to 65535")


def _permitted(path: str, node: yaml.Node, port: int) -> Entry:
    text = node.value if isinstance(node, yaml.ScalarNode) and node.tag in TEXT_TAGS else ""
    try:
        return Entry(port, network=ipaddress.ip_network(text))
    except ValueError:
        pass
    name = normal_name(text)
    wildcard = name.startswith("*.")
    labels = name[2:] if wildcard else name
    if not labels or "*" in labels or "/" in labels or not labels.isprintable() or " " in labels:
        raise _malformed(
            path,
            node,
            f"address is {_shown(node)}; expected a host name, *.DOMAIN, an IP address or a "
            "network such as 10.0.0.0/8 with no host bits set",
        )
    return Entry(port, suffix=name[1:]) if wildcard else Entry(port, name=name)


def _warn_unknown(path: str, key: yaml.Node) -> None:
    log.warning("allowlist %s, line %d: unknown key %s ignored", path, _line(key), _shown(key))


def _malformed(path: str, node: yaml.Node, problem: str) -> ConfigurationError:
    return ConfigurationError(f"allowlist {path}, line {_line(node)}: {problem}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _shown(node: yaml.Node) -> str:
    """A node's value as it stands in the file, short and escaped."""
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("'", '"'):
            return f"the text {node.value[:60]!r}"
        return repr(node.value[:60]) if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
