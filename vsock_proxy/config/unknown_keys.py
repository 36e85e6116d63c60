"""Keys of the file that this program does not know: logged, and ignored as AWS's program does.

The number of lines is limited, because one file may have many thousands of such keys.
"""

from __future__ import annotations

import logging

import yaml

from vsock_proxy.config.yaml_nodes import line_of
from vsock_proxy.config.yaml_values import shown
from vsock_proxy.words import counted

MOST_WARNINGS = 10

log = logging.getLogger(__name__)


class UnknownKeys:
    """Logs which keys are ignored."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._count = 0

    def ignore(self, key: yaml.Node) -> None:
        """This key is ignored."""
        self._count += 1
        if self._count <= MOST_WARNINGS:
            where = f"file {self._path}, line {line_of(key)}"
            log.warning(
                "%(where)s: unknown key %(key)s ignored",
                {"event": "unknown_key", "where": where, "key": shown(key)},
            )

    def end(self) -> None:
        """No more keys come: log how many have no line of their own."""
        more = self._count - MOST_WARNINGS
        if more > 0:
            log.warning(
                "file %(path)s: %(keys)s ignored",
                {
                    "event": "unknown_keys",
                    "path": self._path,
                    "count": more,
                    "keys": counted(more, "more unknown key"),
                },
            )
