"""The units: how little they permit, and that the services agree in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

from tests.support.program import PROJECT
from tests.support.recipe import recipe

SERVICE = PROJECT / "systemd" / "nitro-enclaves-vsock-proxy.service"
TEMPLATE = PROJECT / "systemd" / "nitro-enclaves-vsock-proxy@.service"
SOCKET = PROJECT / "systemd" / "nitro-enclaves-vsock-proxy.socket"
# That of all services of the file, and the template that holds one port of it.
ALL = PROJECT / "systemd" / "vsock-proxy.service"
PORT = PROJECT / "systemd" / "vsock-proxy@.socket"
# systemd-analyze has ten times the exposure that it shows as a threshold.
MAXIMUM_EXPOSURE = 15

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def section(unit: Path, name: str) -> List[str]:
    """The settings of a section, without comments."""
    text = unit.read_text().split(f"\n[{name}]\n", 1)[1].split("\n[", 1)[0]
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def analyze(unit: Path, threshold: int) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of a unit's exposure."""
    return subprocess.run(
        [
            *("systemd-analyze", "security", "--no-pager", "--offline=true"),
            *(f"--threshold={threshold}", str(unit)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture
def _can_analyze(tmp_path: Path) -> None:
    """Skips where systemd-analyze cannot do its work: an ordinary user may lack /run/systemd."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze (systemd)")
    simplest = tmp_path / "simplest.service"
    simplest.write_text("[Service]\nExecStart=/bin/true\n")
    tried = analyze(simplest, threshold=100)
    if tried.returncode:
        pytest.skip(f"systemd-analyze cannot work here: {tried.stdout.strip()}")


@pytest.mark.usefixtures("_can_analyze")
@pytest.mark.parametrize("unit", [SERVICE, TEMPLATE, ALL], ids=lambda unit: unit.name)
def test_the_exposure_is_at_most_1_5(unit: Path) -> None:
    done = analyze(unit, MAXIMUM_EXPOSURE)
    assert "Overall exposure level" in done.stdout
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", [TEMPLATE, ALL], ids=lambda unit: unit.name)
def test_another_service_has_the_sandbox_and_the_supervision_of_the_first(unit: Path) -> None:
    own = ("ExecStart=", "Environment=", "EnvironmentFile=")
    first, other = (
        [line for line in section(file, "Service") if not line.startswith(own)]
        for file in (SERVICE, unit)
    )
    # The one of the file may have many socket units.
    assert [line.replace("%N*.socket", "%N.socket") for line in other] == first


def test_the_service_of_the_file_is_started_without_arguments() -> None:
    assert "ExecStart=/usr/bin/vsock-proxy" in section(ALL, "Service")


def test_errors_that_need_an_operator_are_not_tried_again() -> None:
    assert "RestartPreventExitStatus=64 78" in section(SERVICE, "Service")


def test_the_socket_unit_holds_the_port_that_the_service_asks_for() -> None:
    (command,) = (line for line in section(SERVICE, "Service") if line.startswith("ExecStart="))
    (listen,) = (line for line in section(SOCKET, "Socket") if line.startswith("ListenStream="))
    assert listen == f"ListenStream=vsock::{command.split()[1]}"


def test_a_socket_unit_of_the_template_holds_one_port_for_the_one_service() -> None:
    settings = section(PORT, "Socket")
    assert "ListenStream=vsock::%i" in settings
    assert f"Service={ALL.name}" in settings


@pytest.mark.parametrize("unit", [SERVICE, TEMPLATE, SOCKET, ALL, PORT], ids=lambda unit: unit.name)
def test_the_vsock_module_is_loaded_before(unit: Path) -> None:
    settings = section(unit, "Unit")
    for setting in ("Wants=", "After="):
        (line,) = (line for line in settings if line.startswith(setting))
        assert "modprobe@vsock.service" in line.split("=")[1].split()


def test_a_check_within_the_sandbox_has_all_settings_of_the_sandbox(
    tmp_path: Path,
) -> None:
    edit = tmp_path / "edit"
    not_for_a_check = "ExecStart=\nStandardError=null\nRuntimeDirectory=vm\n"
    edit.write_text(f"# /etc/x.conf\n[Unit]\nAfter=y\n[Service]\n{not_for_a_check}LimitNOFILE=9\n")
    stand_ins = {"systemctl": f"cat {ALL} {edit}", "systemd-run": 'printf "%s\\n" "$@"; exit 78'}
    for name, body in stand_ins.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", recipe()], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (os.EX_CONFIG, "")
    words = done.stdout.splitlines()
    assert words[-2:] == ["vsock-proxy", "--check"]
    properties = [word for word in words if word.startswith("--property=")]
    sandbox = ALL.read_text().split("# The sandbox\n", 1)[1].split("\n[", 1)[0]
    settings = [line for line in sandbox.splitlines() if line and not line.startswith("#")]
    assert properties == [f"--property={line}" for line in [*settings, "LimitNOFILE=9"]]
