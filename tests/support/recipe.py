"""A recipe of the documentation, for tests that call it as an operator does."""

from __future__ import annotations

from tests.support.program import PROJECT


def recipe() -> str:
    """What the documentation says to call for a check within the sandbox."""
    text = (PROJECT / "docs" / "install.md").read_text("utf-8")
    section_text = text.split("#### Checking within the sandbox\n", 1)[1].split("\n#", 1)[0]
    return "\n".join(line for line in section_text.splitlines() if line.startswith("    "))
