"""One release for all tests of packages: tools/release builds it, of this source.

It has a version and a date of its own. So what runs under that version was installed, and what has
that date did not take it from a clock.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Optional

import pytest

from tests.conftest import StartProxy, StartServer
from tests.packages.building import (
    TO_BUILD_DEB,
    TO_BUILD_PAGES,
    TO_BUILD_RPM,
    copy_project,
    missing,
)
from tests.support.servers import exchange

VERSION, NEWER = "99.0.0", "100.0.0"
DATE, EPOCH = "2001-02-03", 981158400
NEEDED = {**TO_BUILD_DEB, **TO_BUILD_RPM, **TO_BUILD_PAGES, "git": "git"}
UNRELEASED = "## [Unreleased]\n\n### Added\n\n- Something.\n"
AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A. Tester"), ("EMAIL", "tester@name.test"))
}
Relays = Callable[..., None]


class Repository:
    """A git repository with the source, to be released."""

    def __init__(self, folder: Path, of: Optional[Repository] = None) -> None:
        self.folder = folder
        if of is None:
            copy_project(folder)
            self.git("init", "--quiet")
        else:
            subprocess.run(["git", "clone", "--quiet", of.folder, folder], check=True)

    def git(self, *arguments: str) -> str:
        """What git prints."""
        return subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env={**os.environ, **AUTHOR},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(self) -> None:
        """Commit all that has changed."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "test")

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace the first such text with another."""
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run tools/release."""
        return subprocess.run(
            [sys.executable, self.folder / "tools" / "release", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def build(self) -> subprocess.CompletedProcess[str]:
        """Build the commit that is checked out, of which the tests are said to have passed."""
        return self.release("build", "--tested", "HEAD")


@pytest.fixture(scope="session")
def unreleased(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The source, with changes that are not released."""
    if missing(NEEDED):
        pytest.skip(missing(NEEDED))
    repository = Repository(tmp_path_factory.mktemp("unreleased") / "source")
    changelog = repository.folder / "CHANGELOG.md"
    if "## [Unreleased]" not in changelog.read_text():
        repository.edit("CHANGELOG.md", "## [", f"{UNRELEASED}\n## [")
    repository.commit()
    return repository


@pytest.fixture(scope="session")
def ready(unreleased: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The source, ready to be released."""
    repository = Repository(tmp_path_factory.mktemp("ready") / "source", unreleased)
    done = repository.release("set", VERSION, "--date", DATE)
    assert done.returncode == 0, done.stdout
    repository.commit()
    return repository


@pytest.fixture(scope="session")
def released(ready: Repository) -> Path:
    """The folder with all that a release consists of."""
    done = ready.build()
    assert done.returncode == 0, done.stdout
    return ready.folder / "dist" / VERSION


@pytest.fixture
def relays(start_proxy: StartProxy, start_server: StartServer) -> Relays:
    """Fails unless this program, given as words, is of the release and relays a byte each way."""

    def check(*program: object) -> None:
        words = list(map(str, program))
        said = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
        assert said.stdout == f"vsock-proxy {VERSION}\n"
        proxy = start_proxy(start_server(), program=words)
        with proxy.connect() as client:
            assert exchange(client, b"x") == b"x"
        proxy.log.wait_for(" ended: 1 bytes up, 1 bytes down")

    return check
