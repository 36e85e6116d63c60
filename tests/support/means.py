"""What a machine may lack; a test that needs it is skipped, and says what that is."""

from __future__ import annotations

import socket

import pytest


def need_address(host: str) -> None:
    """Skip the test where no server can have this address: IPv6 may be switched off."""
    if ":" not in host:
        return
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"needs the address {host}: {error.strerror}")
