"""The operator's file. One reading finds the allowlist and the services.

It is read at start and on SIGHUP, never while a connection is being made. The services are parsed
only if they are needed. A proxy with its one service on the command line does not look at them.

An error begins with the key that it is about, `allowlist` or `services`, or with `file` if it is
about neither. On SIGHUP the command line is not read again, so an error then does not mention it.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Tuple

import yaml

from vsock_proxy.config import allowlist, config_file, metadata, services, yaml_nodes
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.config.unknown_keys import UnknownKeys
from vsock_proxy.config.yaml_values import Fault, shown
from vsock_proxy.errors import ConfigurationError, UsageError, raise_error
from vsock_proxy.settings import ServiceOptions, ServiceSettings

# Seconds for the writer of a pipe that is read at start.
PATIENCE = 30.0

# A key and its value.
Pair = Tuple[yaml.Node, yaml.Node]
Refuse = Callable[[ConfigurationError], None]


class Configuration:
    """What one reading of the file found."""

    def __init__(
        self,
        path: str,
        permitted: Allowlist,
        nodes: List[Pair],
        again: bool,
    ) -> None:
        """
        nodes: each key `services`, with its value.
        again: as in load().
        """
        self.allowlist = permitted
        self._path = path
        self._services = nodes
        self._again = again

    def services(
        self, options: ServiceOptions, workers: int, refuse: Refuse = raise_error
    ) -> Tuple[ServiceSettings, ...]:
        """The services of the file, at least one.

        options: those of the command line, which are the defaults of each service.
        workers: how many serve the services without workers of their own.
        refuse: gets each fault of a service. If it does not raise, the others are parsed too.

        Raises ConfigurationError, one line with file, line, value and expectation; and UsageError
        if the file has no services at start.
        """
        if not self._services:
            if self._again:
                raise ConfigurationError(
                    f"file {self._path}: no 'services:' key; expected it with a list of services"
                )
            raise UsageError(
                f"there is nothing to serve: give <local_port> <remote_addr> <remote_port>, or "
                f"list services in {self._path} (--config), 'services:' beside 'allowlist:'"
            )
        try:
            return services.parse(
                _only(self._services, "services"),
                options,
                workers,
                lambda fault: refuse(fault.of("services", self._path)),
            )
        except Fault as error:
            raise error.of("services", self._path) from None


def load(path: str, again: bool = False) -> Configuration:
    """Read the file. Raises ConfigurationError: one line with file, line, value and expectation.

    again: True on a reload, while services are served: then it must be a regular file.
    """
    root = _compose(path, _read(path, again))
    unknown = UnknownKeys(path)
    try:
        listed, nodes = _parts(root, unknown)
    except Fault as error:
        raise error.of("file", path) from None
    try:
        node = _only(listed, "endpoints")
        permitted = Allowlist(path, allowlist.entries(node, unknown))
    except Fault as error:
        raise error.of("allowlist", path) from None
    unknown.end()
    return Configuration(path, permitted, nodes, again)


def _read(path: str, again: bool) -> str:
    try:
        return config_file.read(path, 0 if again else PATIENCE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"file {path}, line {line}: byte 0x{error.object[error.start]:02x} is not "
            "UTF-8; save the file as UTF-8"
        ) from None
    except config_file.Unreadable as error:
        advice = "" if again else "; name another file with --config"
        raise ConfigurationError(f"file {path}: {error}{advice}") from None


def _compose(path: str, text: str) -> yaml.Node:
    try:
        root = yaml_nodes.compose(text)
    except yaml_nodes.Malformed as error:
        where = "" if error.line is None else f", line {error.line}"
        hint = _hint(text, error.line or 0)
        raise ConfigurationError(f"file {path}{where}: {error}{hint}") from None
    if root is None:
        raise ConfigurationError(f"file {path}: empty; expected 'allowlist:' and a list")
    return root


def _hint(text: str, line: int) -> str:
    """The likely mistake in this line, which is not valid YAML."""
    if line and metadata.placeholders(text.split("\n")[line - 1 : line]):
        return "; an address with {region} or {domain} must be in quotes"
    return ""


def _parts(root: yaml.Node, unknown: UnknownKeys) -> Tuple[List[Pair], List[Pair]]:
    """Each key `allowlist`, at least one, and each key `services`."""
    if not isinstance(root, yaml.MappingNode):
        raise Fault(root, f"{shown(root)} where 'allowlist:' is expected")
    found: Dict[object, List[Pair]] = {"allowlist": [], "services": []}
    for key, value in root.value:
        if isinstance(key, yaml.ScalarNode) and key.value in found:
            found[key.value].append((key, value))
        else:
            unknown.ignore(key)
    if not found["allowlist"]:
        raise Fault(root, "no 'allowlist:' key; expected it with a list of endpoints")
    return found["allowlist"], found["services"]


def _only(pairs: List[Pair], things: str) -> yaml.Node:
    """The value of a key that may stand there only once. things: what it lists."""
    if len(pairs) > 1:
        key, _ = pairs[1]
        raise Fault(key, f"a second '{key.value}:'; put all {things} in one list")
    return pairs[0][1]
