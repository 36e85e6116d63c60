"""The wheel and the source distribution: what is in them, and that pip installs them."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import pytest

from tests.packages.building import lines_of
from tests.packages.conftest import VERSION, Relays, Repository

pytestmark = pytest.mark.hybrid_only
FILES = (f"vsock_proxy-{VERSION}-py3-none-any.whl", f"vsock_proxy-{VERSION}.tar.gz")


@pytest.mark.parametrize("file", FILES, ids=["wheel", "sdist"])
def test_it_relays_from_a_virtual_environment_of_its_own(
    released: Path, file: str, tmp_path: Path, relays: Relays
) -> None:
    lines_of(sys.executable, "-m", "venv", tmp_path / "venv")
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    lines_of(*pip, "install", "--quiet", released / file)
    relays(tmp_path / "venv" / "bin" / "vsock-proxy")


def test_the_source_distribution_has_every_file_of_the_source(
    released: Path, ready: Repository
) -> None:
    with tarfile.open(released / FILES[1]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    # How CI and editors work on the project is no part of it.
    left_out = (".ci/", ".editorconfig", ".gitignore", ".pre-commit-config.yaml")
    source = {name for name in ready.git("ls-files").splitlines() if not name.startswith(left_out)}
    assert source - packed == set()
