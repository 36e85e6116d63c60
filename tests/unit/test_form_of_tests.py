"""The form of the tests: names that a report shows whole, and no wait without a word on why."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Iterator

import pytest

pytestmark = pytest.mark.hybrid_only

TESTS = Path(__file__).parent.parent
LONGEST = 69
# The folders whose files can import tests.support; others run where that is not.
WITH_SUPPORT = ("unit", "program", "soak", "support")
BARE_WAITS = ("time.sleep", "threading.Event().wait")
TIMING = TESTS / "support" / "timing.py"


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def names(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


def bare_waits(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BARE_WAITS:
            yield ast.unparse(node)


def named(path: Path, what: str) -> str:
    return f"{path.relative_to(TESTS)}: {what}"


def test_a_name_is_short_enough_to_be_read_at_a_glance() -> None:
    found = [(path, name) for path in TESTS.rglob("*.py") for name in names(path)]
    assert (Path(__file__), "test_no_file_has_two_tests_of_the_same_name") in found
    assert [named(*each) for each in found if len(each[1]) > LONGEST] == []


def test_no_file_has_two_tests_of_the_same_name() -> None:
    twice = [
        named(path, name)
        for path in TESTS.rglob("*.py")
        for name, count in Counter(names(path)).items()
        if count > 1
    ]
    assert twice == []


def test_what_waits_for_no_event_says_why() -> None:
    paths = [path for folder in WITH_SUPPORT for path in (TESTS / folder).rglob("*.py")]
    found = [(path, wait) for path in paths for wait in bare_waits(path)]
    assert TIMING in [path for path, _ in found]
    assert [named(*each) for each in found if each[0] != TIMING] == []
