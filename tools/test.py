"""Sets a fresh machine up and runs all tests: python3 tools/test.py [arguments of tox]

Arguments are tox's: `python3 tools/test.py -e lint` is one environment, and what follows `--` goes
to pytest. The exit code is tox's. As root, or with a sudo that asks for no password, the Debian
packages that the tests use are installed; else those lacking are named, and what needs them is
skipped.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Mapping

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from tools import bootstrap  # noqa: E402

PACKAGES = Path(__file__).with_name("debian-packages.txt")
# What `tests` stands for in that list; `py` are several.
TESTS = ("py", "coverage", "packages", "soak", "system", "vm")
NOT_TESTS = ("soak", "benchmark")
PYENV_VERSIONS = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
# Tested wherever it is; a machine with all others may lack it.
NEWEST = "3.14"


def main(arguments: List[str]) -> int:
    """Run tox with these arguments; returns its exit code."""
    report(bootstrap.install_debian(needed_packages(arguments)))
    python = bootstrap.python_with("tox>=4")
    command = [python, "-m", "tox", *missing_is_failure(), *arguments]
    bootstrap.say(" ".join(command[2:]))
    environment = {**os.environ, "PATH": os.pathsep.join((*pyenv_folders(), os.environ["PATH"]))}
    environment["TOX_SKIP_ENV"] = left_out(environment)
    return subprocess.run(
        command, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, check=False
    ).returncode


def needed_packages(arguments: List[str]) -> List[str]:
    """The Debian packages for the environments that the arguments name, or for all."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    named = any(word.startswith("-e") for word in words)
    needed = set()
    for environment, packages in known_packages().items():
        is_test = environment not in NOT_TESTS
        if any(environment in word for word in words) or (is_test and not named):
            needed.update(packages)
    return sorted(needed)


def known_packages() -> Dict[str, List[str]]:
    """By environment the Debian packages it needs."""
    lists: Dict[str, List[str]] = defaultdict(list)
    for line in PACKAGES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            package, *environments = line.split()
            for environment in environments:
                for each in TESTS if environment == "tests" else (environment,):
                    lists[each].append(package)
    return lists


def report(lacking: List[str]) -> None:
    """Name what could not be installed."""
    if lacking:
        bootstrap.say(
            "not installed, so what needs them is skipped; as root: "
            f"apt-get install {' '.join(lacking)}"
        )


def pyenv_folders() -> List[str]:
    """Where pyenv keeps the interpreters under test, one folder a version.

    Its shims will not do: those of a version that is not switched on fail.
    """
    versions = (*PYTHONS, NEWEST)
    return [folder for version in versions for folder in reversed(folders_of(version))]


def folders_of(version: str) -> List[str]:
    """Where pyenv keeps this version, the newest last; glob() passes over what may not be read."""
    return sorted(glob.glob(f"{PYENV_VERSIONS}/{version}.*/bin"))


def missing_is_failure() -> List[str]:
    """Under CI, where pyenv has all these versions, none may be passed over in silence."""
    complete = all(folders_of(version) for version in PYTHONS)
    return ["--skip-missing-interpreters=false"] if os.environ.get("CI") and complete else []


def left_out(environment: Mapping[str, str]) -> str:
    """What tox leaves out, a pattern: where a missing version is a failure, also the newest."""
    asked = environment.get("TOX_SKIP_ENV", "")
    if not missing_is_failure() or shutil.which(f"python{NEWEST}", path=environment["PATH"]):
        return asked
    own = f"^py{NEWEST.replace('.', '')}$"
    return f"{asked}|{own}" if asked else own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
