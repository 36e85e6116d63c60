"""Builds the packages, of this source or of the same under another version."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Optional

from tests.support.program import PROJECT

PARTS = ("docs", "etc", "packaging", "systemd", "vsock_proxy")
FILES = ("CHANGELOG.md", "LICENSE", "README.md", "setup.py")
TO_BUILD_DEB = {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper", "dh_python3": "dh-python"}
TO_BUILD_RPM = {"rpmbuild": "rpm"}
TO_BUILD_PAGES = {"rst2man": "python3-docutils"}


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


def lines_of(*command: object) -> list[str]:
    """What a command prints, line by line."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()


def _copy(root: Path, version: str) -> Path:
    root.mkdir(parents=True)
    for part in PARTS:
        shutil.copytree(PROJECT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy2(PROJECT / file, root / file)
    module = root / "vsock_proxy" / "__init__.py"
    text, changes = re.subn('__version__ = ".*"', f'__version__ = "{version}"', module.read_text())
    assert changes == 1
    module.write_text(text)
    return root
