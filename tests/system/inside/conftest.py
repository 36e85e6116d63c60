"""Fixtures of the tests that run inside the booted machine, as root, beside the service."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from tests.system.inside.service import (
    ALLOWLIST,
    DROP_IN,
    SERVICE,
    SOCKET,
    SOCKET_DROP_IN,
    Service,
    run,
)

PACKAGE = Path("/srv/packages/installed.deb")
VERSION_COMMAND = ("dpkg-query", "-W", "-f", "${db:Status-Status}", "vsock-proxy")


@pytest.fixture(scope="session")
def default_allowlist() -> str:
    return ALLOWLIST.read_text()


@pytest.fixture(autouse=True)
def service(default_allowlist: str) -> Iterator[Service]:
    """The service as it is after the boot; what a test did to it is undone."""
    yield Service()
    installed = subprocess.run(VERSION_COMMAND, capture_output=True, text=True, check=False)
    if installed.stdout != "installed":
        run("dpkg", "-i", PACKAGE)
        run("systemctl", "enable", "--now", SOCKET, SERVICE)
    changed = ALLOWLIST.read_text() != default_allowlist
    ALLOWLIST.write_text(default_allowlist)
    for drop_in in (DROP_IN, SOCKET_DROP_IN):
        if drop_in.exists():
            drop_in.unlink()
            run("systemctl", "daemon-reload")
            changed = True
    if changed or not (Service().is_active() and Service(SOCKET).is_active()):
        run("systemctl", "reset-failed", check=False)
        run("systemctl", "start", SOCKET)
        run("systemctl", "restart", SERVICE)
