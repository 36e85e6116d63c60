"""YAML to nodes, in bounded time and memory, whatever the text.

YAML is composed to nodes and not constructed to objects. Nodes keep the line of each value, for
error messages. And nothing in the file is ever executed or expanded.

PyYAML's own composers call themselves for each level. So fifty thousand levels of `- - -` overrun
the stack, and with libyaml's parser that kills the process. The time of the parser grows with the
square of the depth. So this module makes the nodes itself, from the parser's events. It stops at
the first event that is a level too deep or a value too many. A file of 1 MiB then takes 0.3 s at
most, and 3 s if PyYAML was built without libyaml.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Tuple

import yaml
from yaml.resolver import Resolver

MAX_DEPTH = 20
MAX_VALUES = 50_000
# The parser compares each directive with all before it.
MAX_TAG_DIRECTIVES = 16
# libyaml's parser takes a tenth of the time, if PyYAML was built with it.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Malformed(Exception):
    """The text is not YAML, or exceeds a limit. line: None if it is not known."""

    def __init__(self, problem: str, line: Optional[int] = None) -> None:
        super().__init__(problem)
        self.line = line


def compose(text: str) -> Optional[yaml.Node]:
    """The root of the one document in the text; None if there is none. Raises Malformed."""
    _check_directives(text)
    try:
        return _Composer().compose(yaml.parse(text, Loader=Loader))
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        problem = f"not valid YAML: {error.problem or error.context}"
        raise Malformed(problem, mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise Malformed(
            f"not valid YAML: the character U+{code:04X} is not permitted", line
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Malformed(f"not valid YAML: {reason}") from None


def line_of(node: Any) -> int:
    """The line on which a node or an event begins. The first line is 1."""
    return int(node.start_mark.line) + 1


def _check_directives(text: str) -> None:
    parts = text.split("%TAG", MAX_TAG_DIRECTIVES + 1)
    if len(parts) > MAX_TAG_DIRECTIVES + 1:
        line = "".join(parts[:-1]).count("\n") + 1
        raise Malformed(f"more than {MAX_TAG_DIRECTIVES} %TAG directives; none is needed", line)


class _Composer:
    """One document in the making."""

    def __init__(self) -> None:
        self._resolver: Any = Resolver()
        self._root: Optional[yaml.Node] = None
        # The open collections, each with its nodes so far. A mapping has keys and values in turn.
        self._open: List[Tuple[yaml.Node, List[yaml.Node]]] = []
        self._anchors: Dict[str, yaml.Node] = {}
        self._values = 0

    def compose(self, events: Iterator[yaml.Event]) -> Optional[yaml.Node]:
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                self._add(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
            elif isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
                raise Malformed("not valid YAML: a second document", line_of(event))
        return self._root

    def _add(self, event: Any) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise Malformed(f"more than {MAX_VALUES} values", line_of(event))
        node = self._node(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        if self._open:
            self._open[-1][1].append(node)
        else:
            self._root = node
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) == MAX_DEPTH:
                raise Malformed(f"nested more than {MAX_DEPTH} deep", line_of(event))
            self._open.append((node, []))

    def _node(self, event: Any) -> yaml.Node:
        if isinstance(event, yaml.ScalarEvent):
            tag = event.tag
            if tag is None or tag == "!":
                tag = self._resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
            mark: Any = event.start_mark
            return yaml.ScalarNode(tag, event.value, mark, style=event.style)
        if isinstance(event, yaml.AliasEvent):
            anchor = event.anchor or ""
            if anchor not in self._anchors:
                problem = f"not valid YAML: *{anchor[:60]} without &{anchor[:60]} before it"
                raise Malformed(problem, line_of(event))
            return self._anchors[anchor]
        kind = yaml.SequenceNode if isinstance(event, yaml.SequenceStartEvent) else yaml.MappingNode
        return kind(event.tag, [], event.start_mark)

    def _close(self) -> None:
        node, nodes = self._open.pop()
        if isinstance(node, yaml.MappingNode):
            node.value = list(zip(nodes[::2], nodes[1::2]))
        else:
            node.value = nodes
