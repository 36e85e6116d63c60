"""What a check by --check says, as a test looks at it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Callable, List

from tests.support.program import run

# The first word of a line, and what stands between it and the text.
OK, WARNING, FAULT = "ok      ", "warning ", "fault   "
# A service, and a file that permits its endpoint.
ONE = ("8000", "127.0.0.1", "1")
LIST = "allowlist:\n- {address: 127.0.0.1, port: 1}\n"
# Makes the arguments for an endpoint that the allowlist permits.
Words = Callable[..., List[str]]


class Checked:
    """What a check has said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.stderr = done.stderr
        self.lines = done.stdout.splitlines()

    def of(self, word: str) -> List[str]:
        """The texts of one verdict."""
        return [line[len(word) :] for line in self.lines if line.startswith(word)]

    def has(self, word: str, pattern: str) -> bool:
        """Whether a verdict of that kind matches."""
        return any(re.search(pattern, text) for text in self.of(word))


def check(*arguments: str, **process: object) -> Checked:
    """Call the program with --check. process: as in run()."""
    return Checked(run("--check", *arguments, **process))  # type: ignore[arg-type]


def config(folder: Path, text: str) -> List[str]:
    """The option that names a file with this text."""
    path = folder / "config.yaml"
    path.write_text(text)
    return ["--config", str(path)]
