"""The last words of a program that does not serve: as text, as JSON, and in the journal."""

from __future__ import annotations

import json
import os
from typing import List

import pytest

from vsock_proxy.observing.complaints import Complaints
from vsock_proxy.observing.stderr import MOST

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

PRIORITY = "<3>"


class Said:
    """Stands for stderr."""

    def __init__(self) -> None:
        self.texts: List[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)

    @property
    def lines(self) -> List[str]:
        return "\n".join(self.texts).split("\n")


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture(params=[True, False], ids=["the journal", "another file"])
def prefix(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What each line begins with there."""
    stat = os.fstat(2)
    # Another one is the stream of the program that has started this.
    inode = stat.st_ino if request.param else stat.st_ino + 1
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{inode}")
    return PRIORITY if request.param else ""


def complaints(said: Said, in_json: bool) -> Complaints:
    return Complaints(said, in_json)  # type: ignore[arg-type]


def test_a_message_is_one_line_and_its_exit_code_is_returned(said: Said, prefix: str) -> None:
    assert complaints(said, in_json=False).fail("two\nlines", os.EX_CONFIG) == os.EX_CONFIG
    assert said.lines == [f"{prefix}vsock-proxy: two\\nlines"]


def test_each_line_of_a_traceback_has_the_priority(said: Said, prefix: str) -> None:
    complaints(said, in_json=False).fail("a bug", os.EX_SOFTWARE, "first\nlast")
    assert said.lines == [f"{prefix}first", f"{prefix}last", f"{prefix}vsock-proxy: a bug"]


def test_an_object_fits_into_one_write_with_its_priority(said: Said, prefix: str) -> None:
    complaints(said, in_json=True).fail("x" * 3 * MOST, os.EX_CONFIG)
    (line,) = said.lines
    assert line.startswith(prefix)
    assert MOST - 20 < len(f"{line}\n") <= MOST
    assert json.loads(line[len(prefix) :])["exit_code"] == os.EX_CONFIG
