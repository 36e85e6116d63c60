"""The program runs on a Python that lacks the names of what the kernel has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.board import ask
from tests.support.clients import answers
from tests.support.program import run
from tests.support.python import printed_by
from vsock_proxy.process import kernel

# Taken from the modules before the program is imported, as where they were never there.
WITHOUT_NAMES = f"""
import fcntl, select, signal, socket
for name in {[name for name in vars(kernel) if name.isupper()]!r}:
    for module in (fcntl, select, signal, socket):
        if hasattr(module, name):
            delattr(module, name)
"""
# How a socket module behaves that was built without AF_VSOCK. No socket of that family is made, as
# this machine's is not for tests.
WITHOUT_VSOCK = f"""{WITHOUT_NAMES}
class Socket(socket.socket):
    def __init__(self, family=-1, *others, **named):
        self.unknown = family == 40
        super().__init__(socket.AF_UNIX if self.unknown else family, *others, **named)

    def bind(self, address):
        if self.unknown:
            raise OSError("bind(): bad family")
        super().bind(address)

socket.socket = Socket
"""


def environment(folder: Path, code: str) -> Dict[str, str]:
    """In which Python runs some code first."""
    (folder / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture
def old_python(tmp_path: Path) -> Dict[str, str]:
    return environment(tmp_path, WITHOUT_NAMES)


def test_it_serves_without_the_names(
    old_python: Dict[str, str], start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), environment=old_python)
    assert all(answers(proxy) for _ in range(20))
    assert sum(row.served for row in ask(proxy)) == 20
    assert not proxy.log.matching("warning|error")


@pytest.mark.hybrid_only
def test_the_names_are_lacking_in_that_test(old_python: Dict[str, str]) -> None:
    code = "import select, socket; select.EPOLLIN; print(select.EPOLLEXCLUSIVE, socket.AF_VSOCK)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=old_python, capture_output=True, text=True, check=False
    )
    assert "has no attribute 'EPOLLEXCLUSIVE'" in done.stderr


@pytest.mark.hybrid_only
def test_the_numbers_are_those_of_a_python_that_has_the_names() -> None:
    code = f"""{WITHOUT_NAMES}
from vsock_proxy.process import kernel
print([int(value) for name, value in vars(kernel).items() if name.isupper()])
"""
    here = str([int(value) for name, value in vars(kernel).items() if name.isupper()])
    assert printed_by(code) == here + "\n"


@pytest.mark.hybrid_only
def test_a_python_without_vsock_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("allowlist:\n- {address: 10.0.0.1, port: 443}\n")
    done = run(
        *("--config", str(tmp_path / "a.yaml"), "1000000", "10.0.0.1", "443"),
        environment=environment(tmp_path, WITHOUT_VSOCK),
    )
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr == (
        "vsock-proxy: cannot listen on vsock port 1000000: this Python was built without AF_VSOCK; "
        "use another one, such as that of the system\n"
    )
