"""The command line of tools/release."""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import List, Optional, Sequence

from tools import bootstrap
from tools.releasing import building, checks, heading, stating
from tools.releasing.failure import Failed
from tools.releasing.heading import Release

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "packaging" / "tools.txt"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; returns the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "set":
            _set(Release(asked.version, heading.date_of(asked.date)))
            return os.EX_OK
        return _build(list(arguments), asked.tested, asked.into)
    except Failed as failed:
        print(f"tools/release: {failed}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    to_set = commands.add_parser("set", help="write version and date into the source")
    to_set.add_argument("version")
    to_set.add_argument(
        "--date", default=_today(), help="the day of the release, as in 2026-11-26 (default: today)"
    )
    build = commands.add_parser("build", help="check the commit, and build all packages twice")
    build.add_argument("--tested", metavar="COMMIT", help="the commit that has passed .ci/run")
    build.add_argument("--into", metavar="FOLDER", type=Path, help="default: dist/VERSION")
    return parser


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def _set(release: Release) -> None:
    """Make this the version, and the date, of the source."""
    changelog = ROOT / "CHANGELOG.md"
    text = heading.with_heading(changelog.read_text(encoding="utf-8"), release)
    stating.state(ROOT, release.version)
    changelog.write_text(text, encoding="utf-8")
    next_step = f"git commit -a -m 'Release {release.version}'"
    print(f"{release.version} of {release.date} is set; next: {next_step}")


def _build(arguments: List[str], tested: Optional[str], into: Optional[Path]) -> int:
    """Check the commit and build it, by a Python that has what this needs."""
    release = checks.releasable(ROOT, tested, into)
    if _tools_lack():
        again = [_python_with_tools(), str(ROOT / "tools" / "release"), *arguments]
        return subprocess.run(again, check=False).returncode
    target = checks.target_of(ROOT, release, into)
    with tempfile.TemporaryDirectory(prefix="release-") as scratch:
        building.publish(building.build_twice(ROOT, release, Path(scratch)), target)
    next_step = f"git tag -a {release.tag} -m 'Release {release.version}'"
    print(f"{target} has the release; next: {next_step}")
    return os.EX_OK


def _tools_lack() -> bool:
    """Whether this Python lacks one of the tools, in the version that is asked for."""
    wanted = re.findall(r"^([\w-]+)==(\S+)$", TOOLS.read_text(encoding="utf-8"), re.MULTILINE)
    return any(_version_of(name) != version for name, version in wanted if name != "setuptools")


def _version_of(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python_with_tools() -> str:
    """The Python of the project's virtual environment, with the tools in it."""
    return bootstrap.python_with("-r", str(TOOLS))
