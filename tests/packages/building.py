"""Builds the packages, of this source or of the same under another version."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Optional, Tuple

from tests.support.program import PROJECT
from tools.releasing import stating

# Nothing of the source, and large.
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox", ".venv"),
    *("*.egg-info", "__pycache__", "build", "dist"),
)
TO_BUILD_DEB = {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper", "dh_python3": "dh-python"}
TO_BUILD_RPM = {"rpmbuild": "rpm"}
TO_BUILD_PAGES = {"rst2man": "python3-docutils"}
OLDEST_PYTHON = (3, 9)


def missing(commands: Dict[str, str]) -> str:
    """What to install for commands that are not there; empty if all are."""
    packages = [package for command, package in commands.items() if not shutil.which(command)]
    return f"needs the Debian packages {' '.join(packages)}" if packages else ""


def build(kind: str, target: Path, version: Optional[str] = None) -> Path:
    """The one package that packaging/build-KIND makes."""
    root = PROJECT if version is None else _copy(target / f"source-{version}", version)
    folder = target / f"{kind}-{version or 'here'}"
    done = subprocess.run(
        [root / "packaging" / f"build-{kind}", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (package,) = folder.iterdir()
    return package


def copy_project(folder: Path) -> None:
    """Copy the source to a folder that is not there yet."""
    shutil.copytree(PROJECT, folder, ignore=LEFT_OUT)


@functools.lru_cache(None)
def pythons() -> Dict[str, str]:
    """The Pythons that the program is for, wherever they are: version to path, as in `3.9`."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    on_path = (shutil.which(f"python3.{minor}") or "" for minor in range(OLDEST_PYTHON[1], 30))
    found: Dict[str, str] = {}
    for python in (sys.executable, *on_path, *map(str, pyenv.glob("versions/3.*/bin/python3"))):
        version = _version(python) if python else ()
        if version >= OLDEST_PYTHON:
            found.setdefault(".".join(map(str, version)), python)
    return found


def lines_of(*command: object) -> list[str]:
    """What a command prints, line by line."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()


def _version(python: str) -> Tuple[int, ...]:
    """Empty of what is no Python: a stand-in that only says where the real ones are."""
    asked = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tuple(map(int, asked.stdout.split())) if asked.returncode == 0 else ()


def _copy(root: Path, version: str) -> Path:
    copy_project(root)
    stating.state(root, version)
    return root
