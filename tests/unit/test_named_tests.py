"""The pages that name a test name one that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.program import PROJECT

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

PAGES = ("CONTRIBUTING.md", "SECURITY.md", "docs/decisions/*.md")


def definitions() -> str:
    return "\n".join(
        file.read_text(encoding="utf-8") for file in Path(PROJECT / "tests").rglob("*.py")
    )


def test_each_test_that_a_page_names_is_there() -> None:
    there = set(re.findall(r"^ *def (test_\w+)\(", definitions(), re.MULTILINE))
    named = {
        (page.name, name)
        for pattern in PAGES
        for page in PROJECT.glob(pattern)
        for name in re.findall(r"\btest_\w+\b(?!\.py)", page.read_text(encoding="utf-8"))
    }
    assert ("SECURITY.md", "test_it_runs_with_no_privilege") in named
    assert [f"{page}: {name}" for page, name in sorted(named) if name not in there] == []
