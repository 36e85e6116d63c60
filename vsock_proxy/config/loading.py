"""The operator's file, read once for all that is in it: the allowlist, and the services.

It is read at start and on SIGHUP, never while a connection is being made. The services are parsed
only when they are asked for: a proxy that was given its one service on the command line does not
look at them.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import yaml

from vsock_proxy.config import allowlist, config_file, metadata, services, yaml_nodes
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.config.unknown_keys import UnknownKeys
from vsock_proxy.config.yaml_values import Fault, shown
from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.settings import ServiceOptions, ServiceSettings

# Seconds for the writer of a pipe that is read at start.
PATIENCE = 30.0


class Configuration:
    """What one reading of the file found."""

    def __init__(
        self, path: str, permitted: Allowlist, nodes: List[Tuple[yaml.Node, yaml.Node]]
    ) -> None:
        """nodes: each key `services` with its value."""
        self.allowlist = permitted
        self._path = path
        self._services = nodes

    def services(self, options: ServiceOptions, workers: int) -> Tuple[ServiceSettings, ...]:
        """The services of the file, at least one.

        options: those of the command line, the defaults of each service.
        workers: how many serve those that have none of their own.

        Raises ConfigurationError: one line with file, line, value, expectation; UsageError if the
        file has no services.
        """
        if not self._services:
            raise UsageError(
                f"there is nothing to serve: give <local_port> <remote_addr> <remote_port>, or "
                f"list services in {self._path} (--config), 'services:' beside 'allowlist:'"
            )
        try:
            if len(self._services) > 1:
                key, _ = self._services[1]
                raise Fault(key, "a second 'services:'; put all services in one list")
            return services.parse(self._services[0][1], options, workers)
        except Fault as error:
            raise error.of("services", self._path) from None


def load(path: str, patience: float = PATIENCE) -> Configuration:
    """Read the file. Raises ConfigurationError: one line with file, line, value, expectation.

    patience: seconds for the writer of a pipe; 0: only a regular file will do.
    """
    root = _compose(path, _read(path, patience))
    unknown = UnknownKeys(path)
    try:
        listed, nodes = _parts(root, unknown)
        permitted = Allowlist(path, allowlist.entries(listed, unknown))
    except Fault as error:
        raise error.of("allowlist", path) from None
    unknown.end()
    return Configuration(path, permitted, nodes)


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
        hint = _hint(text, error.line or 0)
        raise ConfigurationError(f"allowlist {path}{where}: {error}{hint}") from None
    if root is None:
        raise ConfigurationError(f"allowlist {path}: empty; expected 'allowlist:' and a list")
    return root


def _hint(text: str, line: int) -> str:
    """What is likely to be wrong in that line, which is no YAML."""
    if line and metadata.placeholders(text.split("\n")[line - 1 : line]):
        return "; an address with {region} or {domain} must be in quotes"
    return ""


def _parts(
    root: yaml.Node, unknown: UnknownKeys
) -> Tuple[yaml.Node, List[Tuple[yaml.Node, yaml.Node]]]:
    """The allowlist, and each key `services` with its value."""
    if not isinstance(root, yaml.MappingNode):
        raise Fault(root, f"{shown(root)} where 'allowlist:' is expected")
    listed: Optional[yaml.Node] = None
    found: List[Tuple[yaml.Node, yaml.Node]] = []
    for key, value in root.value:
        if key.value == "services":
            found.append((key, value))
        elif key.value != "allowlist":
            unknown.ignore(key)
        elif listed is None:
            listed = value
        else:
            raise Fault(key, "a second 'allowlist:'; put all endpoints in one list")
    if listed is None:
        raise Fault(root, "no 'allowlist:' key; expected it with a list of endpoints")
    return listed, found
