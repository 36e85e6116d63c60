"""What a YAML node says: a number, a text, or something else, and how a message shows it.

YAML 1.1 reads more into a plain word than its author meant: 010 is 8, 1:30 is 90, and
1:2:3:4:5:6:7:8 is a number. So a value is taken as it is written. A number must have the ordinary
form, and a word that looks like a number may be a text.
"""

from __future__ import annotations

import re
from typing import Optional

import yaml

from vsock_proxy.config.yaml_nodes import line_of
from vsock_proxy.errors import ConfigurationError

INTEGER_TAG = "tag:yaml.org,2002:int"
FLOAT_TAG = "tag:yaml.org,2002:float"
TEXT_TAGS = ("tag:yaml.org,2002:str", INTEGER_TAG, FLOAT_TAG)
DECIMAL = re.compile(r"\+?((0|[1-9][0-9]*)(\.[0-9]+)?|\.[0-9]+)")


class Fault(Exception):
    """A node is wrong; the text says how."""

    def __init__(self, node: yaml.Node, problem: str) -> None:
        super().__init__(problem)
        self.node = node

    def of(self, part: str, path: str) -> ConfigurationError:
        """The error for the operator. part: the part of the file that has it."""
        return ConfigurationError(f"{part} {path}, line {line_of(self.node)}: {self}")


def number(node: yaml.Node) -> str:
    """The digits of a decimal number, with or without a fraction; empty if it is no number."""
    if isinstance(node, yaml.ScalarNode) and node.tag in (INTEGER_TAG, FLOAT_TAG):
        found = DECIMAL.fullmatch(node.value)
        return found[1] if found else ""
    return ""


def text(node: yaml.Node) -> Optional[str]:
    """The text of the node; None if it is no text."""
    if isinstance(node, yaml.ScalarNode) and node.tag in TEXT_TAGS:
        return str(node.value)
    return None


def shown(node: yaml.Node) -> str:
    """The value of a node as it stands in the file, short and escaped."""
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("'", '"'):
            return f"the text {node.value[:60]!r}"
        return repr(node.value[:60]) if node.value else "nothing"
    kind = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
    return f"a {kind}" if node.value else f"an empty {kind}"
