"""The manual pages: well formed, and complete."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.packages.building import TO_BUILD_PAGES, lines_of, missing
from tests.support.program import PROJECT
from vsock_proxy.cli import USAGE

NEEDED = {**TO_BUILD_PAGES, "mandoc": "mandoc", "man": "man-db"}
pytestmark = [
    pytest.mark.hybrid_only,
    pytest.mark.skipif(bool(missing(NEEDED)), reason=missing(NEEDED) or "can be checked"),
]


@pytest.fixture(params=["vsock-proxy.8", "vsock-proxy.yaml.5"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    lines_of("rst2man", "--strict", PROJECT / "docs" / f"{request.param}.rst", path)
    return path


def test_mandoc_finds_no_error(page: Path) -> None:
    # What it warns of is how docutils writes every page.
    assert lines_of("mandoc", "-T", "lint", "-W", "error", page) == []


def test_man_has_nothing_to_warn_of(page: Path) -> None:
    done = subprocess.run(
        ["man", "--warnings", "-l", str(page)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_every_option_is_in_the_manual_and_no_other() -> None:
    text = (PROJECT / "docs" / "vsock-proxy.8.rst").read_text()
    options = text.split("\nOPTIONS\n")[1].split("\nSIGNALS\n")[0]
    in_manual = {
        word.strip(",")
        for line in options.splitlines()
        if line.startswith("-")
        for word in line.split("  ")[0].split()
        if word.startswith("--")
    }
    assert in_manual == set(re.findall(r"^  (?:-., |-w N, )?(--[a-z0-9_-]+)", USAGE, re.MULTILINE))
