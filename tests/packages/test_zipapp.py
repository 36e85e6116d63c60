"""The zip archive that runs: what is in it, and that it needs nothing but a Python."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.packages.building import build, pythons
from tests.packages.conftest import VERSION, Relays
from tests.support.program import PROJECT

pytestmark = pytest.mark.hybrid_only


@pytest.fixture
def zipapp(released: Path) -> Path:
    return released / "vsock-proxy.pyz"


def test_it_contains_the_program_its_two_libraries_and_the_licences(
    zipapp: Path,
) -> None:
    names = set(zipfile.ZipFile(zipapp).namelist())
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "vsock_proxy").rglob("*.py")}
    rest = names - modules
    assert modules <= names
    assert {name for name in rest if not name.startswith("yaml/")} == {
        "__main__.py",
        "docopt.py",
        "licenses/PyYAML",
        "licenses/docopt",
        "licenses/vsock-proxy",
        "vsock_proxy/py.typed",
    }
    assert {Path(name).suffix for name in rest if name.startswith("yaml/")} == {".py"}


def test_it_can_be_dated_before_there_were_zip_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    dates = {member.date_time for member in zipfile.ZipFile(build("zipapp", tmp_path)).infolist()}
    assert dates == {(1980, 1, 1, 0, 0, 0)}


def test_it_is_a_command(zipapp: Path) -> None:
    done = subprocess.run([zipapp, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vsock-proxy {VERSION}\n"


@pytest.mark.parametrize("version", pythons())
def test_it_relays_under_each_python_with_the_standard_library_alone(
    zipapp: Path, version: str, relays: Relays
) -> None:
    # Without the packages of this machine.
    relays(pythons()[version], "-I", "-S", zipapp)
