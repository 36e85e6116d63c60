"""A file of any shape is composed or refused within a second, and never ends the process."""

from __future__ import annotations

import gc
import time
from typing import Dict, Iterator

import pytest
import yaml

from tests.support.timing import SLOWNESS
from vsock_proxy.config import yaml_nodes
from vsock_proxy.config.yaml_nodes import Malformed, compose

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

SIZE = 1 << 20
# Seconds of processor time, on an ordinary machine.
BOUND = 1.0 if yaml.__with_libyaml__ else 10.0


def filled(unit: str) -> str:
    return unit * (SIZE // len(unit.encode()))


DEEP = {
    "block sequences": filled("- "),
    "block sequences by lines": "".join(" " * depth + "-\n" for depth in range(1_400)),
    "block mappings": "".join(" " * depth + "a:\n" for depth in range(1_400)),
    "keys": filled("? "),
    "flow sequences": filled("["),
    "flow sequences by lines": filled("[\n"),
    "flow mappings": filled("{"),
    "flow pairs": filled("[a: "),
}
MANY = {
    "scalars in a block": filled("- a\n"),
    "nothings in a block": filled("-\n"),
    "pairs in a block": filled("a: b\n"),
    "scalars in a flow": "[" + filled("a,"),
    "lists in a flow": "[" + filled("[],"),
    "mappings in a flow": "[" + filled("{},"),
    "pairs in a flow": "[" + filled("a: b,"),
    "lists near to the bound of the depth": filled("- " * 20 + "a\n"),
    "aliases": "- &a b\n" + filled("- *a\n"),
    "anchors": "".join(f"- &a{number} b\n" for number in range(70_000)),
    "one anchor again and again": filled("- &a b\n"),
    "tags": filled("- !t a\n"),
    "merge keys": filled("<<: a\n"),
    "integers to the base 60": filled("- 1:2:3\n"),
    "entries": "allowlist:\n" + filled("- {address: a.b, port: 1}\n"),
}
LONG = {
    "a plain scalar": filled("x"),
    "words": filled("x "),
    "lines": filled("x\n"),
    "a quoted scalar": '"' + filled("x") + '"',
    "escapes": '"' + filled("\\u00e9") + '"',
    "single quotes": "'" + filled("''") + "'",
    "a literal": "|\n" + filled(" x\n"),
    "empty lines of a literal": "|\n" + filled("\n") + " x",
    "a folded scalar": ">\n" + filled(" x\n"),
    "digits": filled("1"),
    "digits to the base 60": "1" + filled(":1"),
    "a tag": "!" + filled("t") + " a",
    "escapes of a tag": "!<" + filled("%41") + "> a",
    "an anchor": "&" + filled("a") + " b",
    "a comment": "#" + filled("x"),
    "comments": filled("#\n"),
    "blanks": filled(" "),
    "empty lines": filled("\n"),
    "line separators": filled("\u2028"),
}
BROKEN = {
    "documents": filled("---\n"),
    "tag directives": "".join(f"%TAG !{number:x}! t\n" for number in range(70_000)) + "---\na\n",
    "other directives": filled("%X y\n") + "---\na\n",
    "a quote without end": '"' + filled("x"),
    "colons": filled("a:"),
    "an alias of nothing": "*" + filled("a"),
    "an alias within itself": "&a [*a, *b]",
    "tabs": filled("\t"),
    "values of one line": filled('"a" '),
}


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    # The program has little that the garbage collector would have to go through.
    gc.collect()
    gc.freeze()
    began = time.process_time()
    yield
    took = time.process_time() - began
    gc.unfreeze()
    assert took < BOUND * SLOWNESS


def refusal(text: str) -> Malformed:
    with pytest.raises(Malformed) as caught:
        compose(text)
    assert caught.value.line is None or caught.value.line >= 1
    assert "\n" not in str(caught.value)
    return caught.value


def cases(shapes: Dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("text", shapes.values(), ids=shapes.keys())


@cases(DEEP)
def test_what_is_nested_too_deep_is_refused(text: str) -> None:
    # libyaml, from 0.2.6 on, may say so first.
    reason = str(refusal(text))
    assert reason == "nested more than 20 deep" or "exceeded maximum nesting depth" in reason


@cases(MANY)
def test_too_many_values_are_refused(text: str) -> None:
    assert str(refusal(text)) == "more than 50000 values"


@cases(LONG)
def test_a_long_text_takes_no_longer(text: str) -> None:
    compose(text)


@cases(BROKEN)
def test_what_is_no_yaml_is_refused_in_time(text: str) -> None:
    refusal(text)


def test_the_line_of_what_is_too_deep_or_too_much_is_told() -> None:
    assert refusal("- a\n" * 50_001).line == 50_000
    assert refusal("\n\n" + "[" * 21).line == 3
    assert refusal("#\n" + "%TAG ! !\n" * 17).line == 18


def test_as_much_as_is_permitted_is_composed() -> None:
    deep = compose("[" * 20 + "]" * 20)
    assert isinstance(deep, yaml.SequenceNode)
    many = compose("- a\n" * 49_999)
    assert isinstance(many, yaml.SequenceNode)
    assert len(many.value) == 49_999


TEXTS = (
    "a: [b, {c: d}, 'e', \"f\", 1, 1.5, ~, yes, 0x1, 1:30, ! g, !!str 1]\n? [k]\n: v\n",
    "- &a {x: 1}\n- *a\n- &b [c, *a]\n- *b\n",
    "--- !t\na: !u b\n...\n",
    "|\n a\n b\n",
    "'x': >-\n  folded\n  text\n",
)


@pytest.mark.parametrize("text", TEXTS)
def test_nodes_are_those_of_the_library(text: str) -> None:
    assert shown(compose(text)) == shown(yaml.compose(text, Loader=yaml_nodes.Loader))


def shown(node: object) -> object:
    """A node as something to compare; tags of collections have no part in an allowlist."""
    if isinstance(node, yaml.ScalarNode):
        return node.tag, node.value, node.style or None, yaml_nodes.line_of(node)
    if isinstance(node, yaml.MappingNode):
        return [(shown(key), shown(value)) for key, value in node.value]
    assert isinstance(node, yaml.SequenceNode)
    return [shown(value) for value in node.value]


@pytest.mark.parametrize("character", ["\0", "\x01", "\x7f", "\x80"], ids=ascii)
def test_a_character_that_yaml_does_not_permit_is_told_with_its_line(character: str) -> None:
    with pytest.raises(Malformed, match=f"U\\+{ord(character):04X} is not permitted") as info:
        compose(f"a:\n- b\n- {character}\n")
    assert info.value.line == 3
