"""The names of the tests: sentences that a report shows whole."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Iterator

import pytest

pytestmark = pytest.mark.hybrid_only

TESTS = Path(__file__).parent.parent
LONGEST = 69


def names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


def named(path: Path, name: str) -> str:
    return f"{path.relative_to(TESTS)}: {name}"


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
