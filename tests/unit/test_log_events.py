"""Each line of the log is about an event, which the sources name and the documentation lists."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import FrozenSet, Iterator, List, Optional

import pytest

import vsock_proxy
from tests.support.json_log import EVENTS, KEYS
from tests.support.program import PROJECT
from vsock_proxy.endpoint.resolution import Condition
from vsock_proxy.observing import json_lines, teller
from vsock_proxy.observing.logs import OTHER

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

ROOT = Path(vsock_proxy.__file__).parent
METHODS = ("debug", "info", "warning", "error", "exception", "critical", "log")
REFERENCE = (PROJECT / "docs" / "reference.md").read_text("utf-8")
# Named in tables, and not where they are logged.
IN_TABLES = {
    *teller.EVENTS.values(),
    *(condition.value for condition in Condition),
    *("start_failed", "scoreboard", "scoreboard_totals", "scoreboard_worker", OTHER),
}


@dataclass(frozen=True)
class Call:
    """One place in the sources that writes a line: `log.info(TEXT, {...})`, `self._say(...)`."""

    where: str
    text: Optional[str]
    event: Optional[str]
    keys: FrozenSet[str]


def calls() -> Iterator[Call]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _is_log(node.func):
                yield _call(f"{path.relative_to(ROOT)}:{node.lineno}", node)


def _is_log(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in METHODS
        and isinstance(function.value, ast.Name)
        and function.value.id in ("log", "root")
    ) or (isinstance(function, ast.Attribute) and function.attr == "_say")


def _call(where: str, node: ast.Call) -> Call:
    known = node.args[-1]
    text = node.args[-2] if len(node.args) > 1 else None
    keys, event = set(), None
    if isinstance(known, ast.Dict):
        for key, value in zip(known.keys, known.values):
            if isinstance(key, ast.Constant):
                keys.add(str(key.value))
                if key.value == "event":
                    event = _pattern(value)
    return Call(
        where,
        text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else None,
        event,
        frozenset(keys),
    )


def _pattern(value: ast.expr) -> str:
    """A regular expression for what an expression may be."""
    if isinstance(value, ast.Constant):
        return re.escape(str(value.value))
    if isinstance(value, ast.IfExp):
        return f"{_pattern(value.body)}|{_pattern(value.orelse)}"
    if isinstance(value, ast.JoinedStr):
        return "".join(
            re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[a-z]+"
            for part in value.values
        )
    # What is in a table.
    return "|".join(map(re.escape, sorted(IN_TABLES)))


CALLS: List[Call] = list(calls())
# Where a line is passed on that others have named.
PASSED_ON = (
    "endpoint/resolution.py",
    "serving/worker.py",
    "supervision/master.py",
    "supervision/pool.py",
)


def test_there_are_calls() -> None:
    assert len(CALLS) > 40


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_each_call_names_an_event_that_the_schema_has(call: Call) -> None:
    if call.event is None:
        assert call.where.split(":")[0] in PASSED_ON
        return
    if call.event == "rehearsal":
        return
    assert any(re.fullmatch(call.event, event) for event in EVENTS), call


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_each_value_given_is_used_and_each_named_in_the_text_is_given(call: Call) -> None:
    if call.event is None or call.text is None:
        return
    named = set(re.findall(r"%\((\w+)\)", call.text))
    said_of_each = {"peer"} if call.where.startswith("serving/worker.py") else set()
    assert named <= call.keys | said_of_each
    assert call.keys <= named | {*json_lines.KEYS, "event"}


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_of_the_schema_is_named_in_the_sources_and_documented(event: str) -> None:
    named = [call for call in CALLS if call.event and re.fullmatch(call.event, event)]
    assert named or event in IN_TABLES or _is_constant(event)
    assert f"`{event}`" in REFERENCE


def _is_constant(event: str) -> bool:
    return any(f'"{event}"' in path.read_text("utf-8") for path in ROOT.rglob("*.py"))


def test_the_schema_and_the_reference_have_every_key_that_is_written() -> None:
    fixed = {"time", "level", "event", "process", "message", "traceback"}
    assert set(KEYS) == fixed | set(json_lines.KEYS)
    for key in KEYS:
        assert f"`{key}`" in REFERENCE
