"""The program as pip installs it from the source."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.program import PROJECT
from vsock_proxy import __version__

pytestmark = pytest.mark.hybrid_only

# Debian's, whichever this runs under: its pip is the oldest that people have.
PYTHON = "/usr/bin/python3"
FILES = ("README.md", "pyproject.toml", "setup.py")


@pytest.mark.skipif(not Path(PYTHON).exists(), reason="needs the Debian package python3-venv")
def test_debians_pip_installs_the_source_without_a_warning(tmp_path: Path) -> None:
    # A build leaves files beside the source.
    source = tmp_path / "source"
    shutil.copytree(
        PROJECT / "vsock_proxy",
        source / "vsock_proxy",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for file in FILES:
        shutil.copy(PROJECT / file, source)
    subprocess.run([PYTHON, "-m", "venv", tmp_path / "venv"], check=True)
    # What the program needs is installed in other ways, and not of interest here.
    pip = str(tmp_path / "venv" / "bin" / "pip")
    done = subprocess.run(
        [pip, "install", "--disable-pip-version-check", "--no-deps", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "DEPRECATION" not in done.stdout + done.stderr
    assert (tmp_path / "venv" / "bin" / "vsock-proxy").exists()
    (installed,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages/vsock_proxy")
    assert {path.relative_to(installed) for path in installed.rglob("*.py")} == {
        path.relative_to(source / "vsock_proxy") for path in (source / "vsock_proxy").rglob("*.py")
    }
    assert (installed / "py.typed").exists()
    assert list(installed.parent.glob(f"vsock_proxy-{__version__}.dist-info"))
