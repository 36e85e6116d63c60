"""What the checker of wording finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import wording

pytestmark = pytest.mark.hybrid_only

FOUND = {
    "has not as a whole verb": ("The list has not this name.", "has not this"),
    "has not at the end of a thought": ("what a worker has not, such as", "has not"),
    "be had": ("The listener cannot be had.", "be had"),
    "told by": ("Told by its length.", "Told by"),
    "so many": ("Wait so many seconds.", "so many"),
    "a headless who": ("who comes late must wait", "who comes late must"),
    "a double negation": ("not unlike", "not unlike"),
    "American spelling": ("its behavior", "behavior"),
}
RIGHT = {
    "a perfect": "a name that has not been resolved",
    "a perfect of another verb": "It has not booted yet.",
    "a word that begins with un": "not under Debian, not until then",
    "who and must in two sentences": "It says who connects. A client must wait.",
    "an option's name": "pytest --color=no",
}


@pytest.mark.parametrize(("text", "phrase"), FOUND.values(), ids=list(FOUND))
def test_a_phrase_is_found(text: str, phrase: str) -> None:
    assert [found for _, found, _ in wording.phrases_in(text)] == [phrase]


@pytest.mark.parametrize("text", RIGHT.values(), ids=list(RIGHT))
def test_good_english_is_left_alone(text: str) -> None:
    assert list(wording.phrases_in(text)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "It cannot be\nhad.\n"),
        ("page.rst", "\nIt cannot be had.\n"),
        ("module.py", "# It cannot be\n# had.\n"),
        ("module.py", '"""Nothing.\n\nIt cannot be had.\n"""\n'),
        ("module.py", 'text = (\n    "It cannot be "\n    f"had in {place}"\n)\n'),
        ("program", "#!/usr/bin/env python3\nprint('It cannot be had.')\n"),
        ("script", "run # it cannot be\n# had\n"),
        ("a.service", "[Unit]\n# It cannot be had.\n"),
    ],
)
def test_a_phrase_is_found_in_what_people_read(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert len(list(wording.findings(file))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "The option\n\n    be had\n\nand `be had`.\n"),
        ("page.md", "```\nbe had\n```\n"),
        ("module.py", "be = had = 1\nnames = ('be', 'had')\n"),
        ("module.py", "be = f'this is {be} had and {color}'\n"),
        ("script", "be had\n"),
    ],
)
def test_code_is_passed_over(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert list(wording.findings(file)) == []


def test_a_finding_says_where_it_is_and_what_to_write(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("One line.\n\nIt cannot be\nhad.\n")
    (found,) = wording.findings(file)
    assert found.startswith(f"{file}:3: 'be had': write ")
