"""tools/release: what it refuses, and what a release consists of."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Callable, Dict

import pytest

from tests.packages.building import lines_of
from tests.packages.conftest import DATE, EPOCH, VERSION, Repository
from tests.support.program import PROJECT
from tools.releasing import stating

pytestmark = pytest.mark.hybrid_only
BUNDLED = dict(
    re.findall(r"(?m)^(\S+)==(\S+)", (PROJECT / "packaging/rpm/requirements.txt").read_text())
)


@pytest.fixture
def repository(ready: Repository, tmp_path: Path) -> Repository:
    """Ready to be released, and the test's own."""
    return Repository(tmp_path / "source", ready)


def unreleased_again(repository: Repository) -> None:
    repository.edit("CHANGELOG.md", f"## [{VERSION}] - {DATE}", "## [Unreleased]")
    repository.commit()


def of_another_version(repository: Repository) -> None:
    repository.edit("vsock_proxy/__init__.py", VERSION, "99.0.1")
    repository.commit()


def with_the_manifest_forgotten(repository: Repository) -> None:
    repository.edit("etc/kubernetes/vsock-proxy.yaml", VERSION, "1.0.0")
    repository.commit()


def changed(repository: Repository) -> None:
    repository.edit("README.md", "vsock", "VSOCK")


def with_a_file_that_lies_about(repository: Repository) -> None:
    (repository.folder / "notes").touch()


def tagged(repository: Repository) -> None:
    repository.git("tag", f"v{VERSION}")


def built_before(repository: Repository) -> None:
    folder = repository.folder / "dist" / VERSION
    folder.mkdir(parents=True)
    (folder / "some.whl").touch()


REFUSED: Dict[Callable[[Repository], None], str] = {
    unreleased_again: "CHANGELOG.md begins with '## [Unreleased]', not with a release; set version "
    "and date with: tools/release set VERSION",
    of_another_version: "vsock_proxy/__init__.py states 99.0.1, and the heading of CHANGELOG.md "
    f"{VERSION}; make them equal",
    with_the_manifest_forgotten: "etc/kubernetes/vsock-proxy.yaml states 1.0.0, and the heading of "
    f"CHANGELOG.md {VERSION}; make them equal",
    changed: "uncommitted: README.md; commit what belongs, remove the rest",
    with_a_file_that_lies_about: "uncommitted: notes; commit what belongs, remove the rest",
    tagged: f"the tag v{VERSION} exists, so it is released; set a higher version: set version and "
    "date with: tools/release set VERSION",
    built_before: f"{VERSION} has files in it; remove it, or say where to with --into FOLDER",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_released_is_refused_with_one_line(
    repository: Repository, spoil: Callable[[Repository], None]
) -> None:
    spoil(repository)
    done = repository.build()
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith("tools/release: ")
    assert line.endswith(REFUSED[spoil])


def test_a_commit_that_nobody_calls_tested_is_refused(
    repository: Repository,
) -> None:
    done = repository.release("build")
    head = repository.git("rev-parse", "HEAD")
    assert done.returncode == 1
    assert done.stdout.endswith(f"Run .ci/run, then say: --tested {head}\n")


def test_tests_of_another_commit_do_not_count(repository: Repository) -> None:
    done = repository.release("build", "--tested", "HEAD~1")
    assert done.returncode == 1
    assert "HEAD~1 is not the checked out commit" in done.stdout


def with_builds_that(repository: Repository, command: str) -> None:
    """Replace each script that builds something with a command."""
    for script in (repository.folder / "packaging").glob("build-*"):
        script.write_text(f"#!/bin/sh\n{command}\n")
    repository.commit()


def test_packages_that_differ_are_kept_and_are_no_release(repository: Repository) -> None:
    with_builds_that(repository, 'echo same >"$1/equal"; pwd >"$1/place"; echo "$TZ" >"$1/zone"')
    done = repository.build()
    dist = repository.folder / "dist"
    kept = [dist / f"{VERSION}-first", dist / f"{VERSION}-second"]
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == (
        "tools/release: two builds differ in zone; compare them, as with diffoscope: "
        f"{kept[0]} {kept[1]}"
    )
    assert (kept[0] / "zone").read_text() != (kept[1] / "zone").read_text()
    assert not (dist / VERSION).exists()


def test_a_build_that_fails_is_named_below_what_it_said(repository: Repository) -> None:
    with_builds_that(repository, "echo no compiler; exit 69")
    done = repository.build()
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [
        "no compiler",
        "tools/release: build-python failed with exit code 69; mend what its last lines above say, "
        "and start again",
    ]
    assert not (repository.folder / "dist").exists()


def test_a_build_sees_only_what_is_committed(repository: Repository) -> None:
    repository.edit(".gitignore", "/dist/", "/dist/\nignored")
    (repository.folder / "ignored").touch()
    with_builds_that(repository, 'ls "$(dirname "$0")/.." >"$1/files"')
    assert repository.build().returncode == 0
    files = (repository.folder / "dist" / VERSION / "files").read_text().split()
    assert "setup.py" in files
    assert "ignored" not in files


def test_set_writes_the_version_wherever_it_stands(ready: Repository) -> None:
    assert set().union(*stating.stated(ready.folder).values()) == {VERSION}


def test_every_package_of_the_release_is_there(released: Path) -> None:
    assert {path.name for path in released.iterdir()} == {
        "SHA256SUMS",
        f"vsock-proxy-{VERSION}-1.aarch64.rpm",
        f"vsock-proxy-{VERSION}-1.x86_64.rpm",
        f"vsock-proxy-{VERSION}.cdx.json",
        "vsock-proxy.pyz",
        f"vsock-proxy_{VERSION}_all.deb",
        f"vsock_proxy-{VERSION}-py3-none-any.whl",
        f"vsock_proxy-{VERSION}.tar.gz",
    }


def test_the_digests_are_those_of_all_other_files(released: Path) -> None:
    checked = lines_of("env", "-C", released, "sha256sum", "--check", "--strict", "SHA256SUMS")
    names = {path.name for path in released.iterdir()} - {"SHA256SUMS"}
    assert {line.split(":")[0] for line in checked} == names


def test_every_package_has_the_date_of_the_changelog(released: Path) -> None:
    day = tuple(map(int, DATE.split("-")))
    for name in (f"vsock_proxy-{VERSION}-py3-none-any.whl", "vsock-proxy.pyz"):
        archive = zipfile.ZipFile(released / name)
        assert {member.date_time[:3] for member in archive.infolist()} == {day}
    with tarfile.open(released / f"vsock_proxy-{VERSION}.tar.gz") as sdist:
        assert {member.mtime for member in sdist} == {EPOCH}
    listed = lines_of("dpkg-deb", "-c", released / f"vsock-proxy_{VERSION}_all.deb")
    assert {line.split()[3] for line in listed} == {DATE}
    query = "[%{FILEMTIMES}\\n]%{BUILDTIME}\\n"
    for architecture in ("x86_64", "aarch64"):
        rpm = released / f"vsock-proxy-{VERSION}-1.{architecture}.rpm"
        assert set(lines_of("rpm", "-qp", "--queryformat", query, rpm)) == {str(EPOCH)}


def test_the_manual_has_the_version_and_its_date(released: Path, tmp_path: Path) -> None:
    lines_of("dpkg-deb", "-x", released / f"vsock-proxy_{VERSION}_all.deb", tmp_path)
    page = tmp_path / "usr" / "share" / "man" / "man8" / "vsock-proxy.8.gz"
    (title,) = (line for line in lines_of("zcat", page) if line.startswith(".TH"))
    assert f'"{DATE}" "vsock-proxy {VERSION}"' in title


def test_the_sbom_names_what_is_bundled_with_its_licences(released: Path) -> None:
    listed = json.loads((released / f"vsock-proxy-{VERSION}.cdx.json").read_text())
    assert (listed["bomFormat"], listed["metadata"]["component"]["version"]) == (
        "CycloneDX",
        VERSION,
    )
    assert {one["name"]: one["version"] for one in listed["components"]} == BUNDLED
    assert all(one["licenses"] for one in listed["components"])
    (depends,) = (one for one in listed["dependencies"] if one["ref"] == "root-component")
    assert set(depends["dependsOn"]) == {f"{name}=={version}" for name, version in BUNDLED.items()}
