"""The manual pages are well formed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.packages.building import TO_BUILD_PAGES, lines_of, missing
from tests.support.program import PROJECT

NEEDED = {**TO_BUILD_PAGES, "mandoc": "mandoc", "man": "man-db"}
pytestmark = [
    pytest.mark.hybrid_only,
    pytest.mark.skipif(bool(missing(NEEDED)), reason=missing(NEEDED) or "can be checked"),
]


@pytest.fixture(params=["vsock-proxy.8", "vsock-proxy.yaml.5"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    lines_of(PROJECT / "packaging" / "build-pages", tmp_path)
    return tmp_path / str(request.param)


def test_mandoc_finds_no_error(page: Path) -> None:
    # What it warns of is how docutils writes every page.
    assert lines_of("mandoc", "-T", "lint", "-W", "error", page) == []


def test_man_has_nothing_to_warn_of(page: Path) -> None:
    done = subprocess.run(
        ["man", "--warnings", "-l", str(page)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
