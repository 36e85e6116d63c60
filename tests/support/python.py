"""This interpreter, run to its end: code that prints, or a module of the tests that reports."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Dict, List

from tests.support.program import PROJECT
from tests.support.timing import SLOWNESS


def printed_by(code: str, *arguments: str, options: List[str] | None = None) -> str:
    """What the code prints. Fails if the code fails. options: for the interpreter."""
    return _output([*(options or []), "-c", code, *arguments])


def reported_by(module: str, *arguments: str) -> List[Dict[str, object]]:
    """What a module prints, an object of JSON a line; it may take minutes."""
    return [json.loads(line) for line in _output(["-m", module, *arguments]).splitlines()]


def _output(arguments: List[str]) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600 * SLOWNESS,
        check=True,
    ).stdout
