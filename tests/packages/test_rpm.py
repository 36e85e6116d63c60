"""The RPM package: what is in it, what it asks for, and that it stands beside AWS's package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packages.building import build, lines_of, missing, pythons
from tests.packages.conftest import NEWER, VERSION, Relays
from tests.support.program import PROJECT
from tests.support.root import inside, why_no_root

NEEDED = {"busybox": "busybox-static"}
pytestmark = [
    pytest.mark.hybrid_only,
    pytest.mark.skipif(bool(missing(NEEDED)), reason=missing(NEEDED) or "can be built"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for rpm to change its root"),
]
PREFIX = "/usr/local"
LIBRARY = f"{PREFIX}/lib/vsock-proxy"
CONFIGURATION = "etc/nitro_enclaves/vsock-proxy.yaml"
# That of the system that the package is for.
PYTHON = pythons().get("3.9")
# A package with the names that aws-nitro-enclaves-cli has on Amazon Linux 2023.
OTHER = """
Name: other
Version: 1
Release: 1
Summary: -
License: -
BuildArch: noarch
%description
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/lib/systemd/system %{buildroot}/etc/nitro_enclaves
cd %{buildroot}
echo other > usr/bin/vsock-proxy
echo other > usr/lib/systemd/system/nitro-enclaves-vsock-proxy.service
echo other > etc/nitro_enclaves/vsock-proxy.yaml
%files
/usr/bin/vsock-proxy
/usr/lib/systemd/system/nitro-enclaves-vsock-proxy.service
%config(noreplace) /etc/nitro_enclaves/vsock-proxy.yaml
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture
def rpm(released: Path) -> Path:
    return released / f"vsock-proxy-{VERSION}-1.x86_64.rpm"


@pytest.fixture(scope="module")
def newer(packages: Path) -> Path:
    return build("rpm", packages, NEWER)


@pytest.fixture(scope="module")
def other(packages: Path) -> Path:
    (packages / "other.spec").write_text(OTHER)
    top = packages / "other"
    lines_of("rpmbuild", "-bb", "--quiet", "-D", f"_topdir {top}", packages / "other.spec")
    return top / "RPMS" / "noarch" / "other-1-1.noarch.rpm"


class Root:
    """A system with a shell and nothing else, to install packages in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        shutil.copy(shutil.which("busybox") or "", folder / "bin" / "busybox")
        lines_of("chroot", folder, "/bin/busybox", "--install", "-s", "/bin")

    def rpm(self, *arguments: object) -> None:
        """Run rpm on this system; it knows nothing of what is required."""
        subprocess.run(
            ["rpm", "--root", str(self.folder), "--nodeps", *map(str, arguments)],
            stderr=subprocess.PIPE,
            check=True,
        )

    def put_python(self, python: str) -> None:
        """Give it a Python where the distribution has its own."""
        lines_of(python, PROJECT / "etc" / "guest" / "build-root", self.folder)
        place = self.folder / "usr" / "bin" / "python3"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to("/bin/python3")

    @property
    def allowlist(self) -> Path:
        return self.folder / CONFIGURATION


@pytest.fixture
def system(tmp_path: Path) -> Root:
    folder = tmp_path / "system"
    folder.mkdir()
    return Root(folder)


def test_it_has_the_program_and_what_belongs_to_it_and_no_more(rpm: Path) -> None:
    files = set(lines_of("rpm", "-qpl", rpm))
    assert {file for file in files if not file.startswith(LIBRARY)} == {
        "/etc/nitro_enclaves",
        "/etc/nitro_enclaves/vsock-proxy.d",
        f"/{CONFIGURATION}",
        f"{PREFIX}/bin/vsock-proxy",
        f"{PREFIX}/lib/systemd/system/nitro-enclaves-vsock-proxy.service",
        f"{PREFIX}/lib/systemd/system/nitro-enclaves-vsock-proxy.socket",
        f"{PREFIX}/lib/systemd/system/nitro-enclaves-vsock-proxy@.service",
        f"{PREFIX}/lib/systemd/system/vsock-proxy.service",
        f"{PREFIX}/lib/systemd/system/vsock-proxy@.socket",
        f"{PREFIX}/share/doc/vsock-proxy",
        f"{PREFIX}/share/doc/vsock-proxy/examples",
        f"{PREFIX}/share/doc/vsock-proxy/examples/vsock-proxy.json",
        f"{PREFIX}/share/doc/vsock-proxy/examples/vsock-proxy.rules.yaml",
        f"{PREFIX}/share/man/man5/vsock-proxy.yaml.5",
        f"{PREFIX}/share/man/man8/vsock-proxy.8",
    }
    modules = (PROJECT / "vsock_proxy").rglob("*.py")
    assert {f"{LIBRARY}/{path.relative_to(PROJECT)}" for path in modules} <= files
    assert not [file for file in files if "__pycache__" in file]


def test_it_requires_the_distributions_python_and_systemd(rpm: Path) -> None:
    required = {line for line in lines_of("rpm", "-qpR", rpm) if not line.startswith("rpmlib")}
    assert required == {"/bin/sh", "/usr/bin/python3", "python(abi) = 3.9", "systemd"}


def test_the_allowlist_is_a_configuration_file(rpm: Path) -> None:
    assert lines_of("rpm", "-qpc", rpm) == [f"/{CONFIGURATION}"]


def test_the_units_start_what_was_installed(rpm: Path, system: Root) -> None:
    system.rpm("-i", rpm)
    for unit in (system.folder / "usr/local/lib/systemd/system").glob("*.service"):
        (start,) = (line for line in unit.read_text().splitlines() if "ExecStart=" in line)
        program = start.split("=")[1].split()[0]
        assert os.access(f"{system.folder}{program}", os.X_OK)


def test_the_default_allowlist_is_there_after_the_installation(rpm: Path, system: Root) -> None:
    system.rpm("-i", rpm)
    assert system.allowlist.read_text() == (PROJECT / CONFIGURATION).read_text()


def test_an_edited_allowlist_outlives_an_upgrade(rpm: Path, newer: Path, system: Root) -> None:
    system.rpm("-i", rpm)
    system.allowlist.write_text("edited")
    system.rpm("-U", newer)
    assert system.allowlist.read_text() == "edited"


def test_removal_leaves_nothing(rpm: Path, system: Root) -> None:
    system.rpm("-i", rpm)
    (system.folder / LIBRARY[1:] / "vsock_proxy" / "__pycache__").mkdir()
    system.rpm("-e", "vsock-proxy")
    assert list(system.folder.rglob("*vsock*")) == []


def test_removal_leaves_an_edited_allowlist(rpm: Path, system: Root) -> None:
    system.rpm("-i", rpm)
    system.allowlist.write_text("edited")
    system.rpm("-e", "vsock-proxy")
    assert system.allowlist.read_text() == "edited"


def test_it_stands_beside_the_package_of_aws_and_touches_no_file_of_it(
    rpm: Path, other: Path, system: Root
) -> None:
    system.rpm("-i", other)
    system.rpm("-i", rpm)
    system.rpm("-e", "vsock-proxy")
    assert system.allowlist.read_text() == "other\n"
    assert (system.folder / "usr/bin/vsock-proxy").read_text() == "other\n"


@pytest.mark.skipif(PYTHON is None, reason="needs Python 3.9")
@pytest.mark.skipif(bool(why_no_root()), reason=why_no_root() or "can be entered")
def test_it_relays_beside_a_shell_and_python_3_9_alone(
    rpm: Path, system: Root, relays: Relays, tmp_path: Path
) -> None:
    system.put_python(str(PYTHON))
    system.rpm("-i", rpm)
    relays(*inside(system.folder, tmp_path), f"{PREFIX}/bin/vsock-proxy")
