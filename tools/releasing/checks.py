"""What a commit must be, to be released.

The tests take an hour, and need a machine of their own. So they are not run here; whoever makes the
release says for which commit they have passed, and that must be the one that is built.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Optional

from tools.releasing import heading, stating
from tools.releasing.failure import Failed
from tools.releasing.heading import Release


def releasable(root: Path, tested: Optional[str], target: Optional[Path]) -> Release:
    """The release that the checked out commit is."""
    _clean(root)
    release = heading.newest((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    stating.check(root, release.version)
    _no_tag(root, release.tag)
    _tested(root, tested)
    folder = target_of(root, release, target)
    if folder.exists() and any(folder.iterdir()):
        raise Failed(f"{folder} has files in it; remove it, or say where to with --into FOLDER")
    return release


def target_of(root: Path, release: Release, asked: Optional[Path]) -> Path:
    """The folder for what is built."""
    return asked or root / "dist" / release.version


def git(root: Path, *arguments: str) -> str:
    """What git prints, empty if it fails."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _clean(root: Path) -> None:
    if not git(root, "rev-parse", "HEAD"):
        raise Failed(f"{root} is not a git repository with a commit; release from a clone of it")
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        raise Failed(f"uncommitted: {changed[0].split()[-1]}; commit what belongs, remove the rest")


def _no_tag(root: Path, tag: str) -> None:
    if git(root, "tag", "--list", tag):
        raise Failed(
            f"the tag {tag} exists, so it is released; set a higher version: {heading.HOW}"
        )


def _tested(root: Path, tested: Optional[str]) -> None:
    head = git(root, "rev-parse", "HEAD")
    if tested is None:
        raise Failed(f"which commit have all tests passed? Run .ci/run, then say: --tested {head}")
    if git(root, "rev-parse", "--verify", "--quiet", f"{tested}^{{commit}}") != head:
        raise Failed(f"{tested} is not the checked out commit {head}; run .ci/run on that one")
