"""The Debian package: what is in it and what it asks for. How it fares, tests/system shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.packages.building import lines_of, missing
from tests.packages.conftest import VERSION, Relays
from tests.support.program import PROJECT
from tests.support.root import inside, why_no_root
from tests.system import image
from tests.vm.kernel import Lacking

pytestmark = pytest.mark.hybrid_only
MODULES = "usr/lib/python3/dist-packages"
SCRIPTS = ("postinst", "prerm", "postrm")
CONFIGURATION = "/etc/nitro_enclaves/vsock-proxy.yaml"


@pytest.fixture
def deb(released: Path) -> Path:
    return released / f"vsock-proxy_{VERSION}_all.deb"


def test_it_has_the_program_and_what_belongs_to_it_and_no_more(deb: Path) -> None:
    # Only what is large enough for it is compressed, but no example: these are to be imported.
    listed = (line.split()[-1][2:] for line in lines_of("dpkg-deb", "-c", deb))
    files = {re.sub(r"(?<!\.json|\.yaml)\.gz$", "", file) for file in listed if file}
    found = {file for file in files if not file.endswith("/") and ".egg-info" not in file}
    modules = {f"{MODULES}/{path.relative_to(PROJECT)}" for path in _modules()}
    assert found - modules == {
        "etc/nitro_enclaves/vsock-proxy.yaml",
        "lib/systemd/system/nitro-enclaves-vsock-proxy.service",
        "lib/systemd/system/nitro-enclaves-vsock-proxy.socket",
        "lib/systemd/system/nitro-enclaves-vsock-proxy@.service",
        "lib/systemd/system/vsock-proxy.service",
        "lib/systemd/system/vsock-proxy@.socket",
        "usr/bin/vsock-proxy",
        "usr/share/doc/vsock-proxy/README.md",
        "usr/share/doc/vsock-proxy/changelog",
        "usr/share/doc/vsock-proxy/copyright",
        "usr/share/doc/vsock-proxy/examples/vsock-proxy.json",
        "usr/share/doc/vsock-proxy/examples/vsock-proxy.rules.yaml",
        "usr/share/man/man5/vsock-proxy.yaml.5",
        "usr/share/man/man8/vsock-proxy.8",
    }
    assert modules <= found
    assert "etc/nitro_enclaves/vsock-proxy.d/" in files


def test_it_depends_on_what_setup_py_asks_for(deb: Path) -> None:
    (depends,) = lines_of("dpkg-deb", "-f", deb, "Depends")
    assert set(depends.split(", ")) == {
        "python3-docopt",
        "python3-setproctitle",
        "python3-yaml",
        "python3:any",
    }


def test_it_suggests_what_metrics_need(deb: Path) -> None:
    assert lines_of("dpkg-deb", "-f", deb, "Suggests") == ["python3-prometheus-client"]


def test_the_allowlist_is_a_configuration_file(deb: Path, tmp_path: Path) -> None:
    lines_of("dpkg-deb", "-e", deb, tmp_path)
    assert (tmp_path / "conffiles").read_text().split() == [CONFIGURATION]


def test_what_runs_is_started_and_stopped_only_as_policy_rc_d_permits(
    deb: Path, tmp_path: Path
) -> None:
    lines_of("dpkg-deb", "-e", deb, tmp_path)
    scripts = "".join((tmp_path / name).read_text() for name in SCRIPTS)
    assert "deb-systemd-invoke try-restart" in scripts
    assert "deb-systemd-invoke stop" in scripts
    done_directly = re.findall(r"\bsystemctl (?:--system )?([a-z-]+)", scripts)
    assert set(done_directly) <= {"daemon-reload", "list-units"}


@pytest.mark.skipif(bool(missing({"lintian": "lintian"})), reason="needs lintian")
def test_lintian_finds_no_error(deb: Path) -> None:
    found = lines_of("lintian", "--allow-root", "--fail-on", "none", deb)
    assert [line for line in found if line.startswith("E:")] == []


@pytest.mark.skipif(bool(why_no_root()), reason=why_no_root() or "can be entered")
def test_it_relays_on_a_debian_system_that_has_what_it_depends_on(
    deb: Path, tmp_path: Path, relays: Relays
) -> None:
    try:
        image.require_debian()
        system = image.debian()
    except Lacking as lacking:
        pytest.skip(str(lacking))
    root = tmp_path / "root"
    root.mkdir()
    lines_of("tar", "-x", "-C", root, "-f", system)
    shutil.copy(deb, root / "srv" / "installed.deb")
    lines_of("chroot", root, "dpkg", "-i", "/srv/installed.deb")
    relays(*inside(root, tmp_path), "/usr/bin/vsock-proxy")


def _modules() -> list[Path]:
    files = (path for path in (PROJECT / "vsock_proxy").rglob("*") if path.is_file())
    return [path for path in files if path.parent.name != "__pycache__"]
