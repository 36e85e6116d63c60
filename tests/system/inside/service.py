"""The service as an operator and a guest see it: systemctl, the journal, and its vsock port."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Callable, List, Optional

from tests.system.inside.world import KMS_NAME, certificate

SERVICE = "nitro-enclaves-vsock-proxy.service"
SOCKET = "nitro-enclaves-vsock-proxy.socket"
ALLOWLIST = Path("/etc/nitro_enclaves/vsock-proxy.yaml")
DROP_IN = Path(f"/run/systemd/system/{SERVICE}.d/test.conf")
SOCKET_DROP_IN = Path(f"/run/systemd/system/{SOCKET}.d/test.conf")
PORT = 8000
VMADDR_CID_LOCAL = 1
# The machine is emulated, and its two processors are shared.
TIMEOUT = 60.0


def run(*command: object, check: bool = True) -> str:
    """What a command prints."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def wait_until(condition: Callable[[], object], what: str, timeout: float = TIMEOUT) -> None:
    """Wait for a condition; fails when that takes too long."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)


class Service:
    """A unit that the package brings along."""

    def __init__(self, name: str = SERVICE) -> None:
        self.name = name

    def get(self, name: str) -> str:
        """One of its properties."""
        return run("systemctl", "show", "--value", "--property", name, self.name).strip()

    def is_active(self) -> bool:
        """Whether it runs and is ready."""
        return self.get("ActiveState") == "active"

    @property
    def pid(self) -> int:
        """Its main process, 0 if there is none."""
        return int(self.get("MainPID"))

    def wait_for_another(self, old: int) -> None:
        """Wait until it is active with another main process."""
        wait_until(lambda: self.pid not in (0, old) and self.is_active(), "it is up again")

    def journal(self, since: str) -> str:
        """What it has logged since a cursor of the journal."""
        return run("journalctl", "--after-cursor", since, "--unit", self.name, "--output", "cat")


def journal_now(name: str = SERVICE) -> str:
    """The present end of what a service has logged, which is not nothing.

    Not of all that was: --after-cursor with --unit skips an entry of the unit too many when the one
    that the cursor names is of another (journalctl of systemd 252).
    """
    run("journalctl", "--sync")
    shown = run("journalctl", "--unit", name, "--lines", "1", "--show-cursor")
    return shown.rsplit("-- cursor: ", 1)[1].strip()


def connect(port: int = PORT, name: str = KMS_NAME) -> ssl.SSLSocket:
    """A guest's connection to KMS or another endpoint, its name checked."""
    return secure(connect_only(port), name)


def connect_only(port: int = PORT) -> socket.socket:
    """A guest's connection, that may not be served yet."""
    client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    client.settimeout(TIMEOUT)
    client.connect((VMADDR_CID_LOCAL, port))
    return client


def secure(client: socket.socket, name: str = KMS_NAME) -> ssl.SSLSocket:
    """A guest's connection from here on in TLS, the name of the endpoint checked."""
    context = ssl.create_default_context(cafile=str(certificate(name)))
    return context.wrap_socket(client, server_hostname=name)


def echoes(client: ssl.SSLSocket, data: bytes) -> bool:
    """Whether what is sent comes back."""
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        part = client.recv(65536)
        if not part:
            return False
        received += part
    return received == data


class Load:
    """Guests that connect, exchange a little, end, and come again, until it is enough."""

    def __init__(self, guests: int, port: int = PORT, name: str = KMS_NAME) -> None:
        self._where = port, name
        self.served = 0
        self.failures: List[str] = []
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._guest) for _ in range(guests)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *error: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int = 5) -> None:
        """Wait until this number of connections more were served."""
        goal = self.served + count
        wait_until(lambda: self.served >= goal or self.failures, "guests are served")

    def _guest(self) -> None:
        while not self._enough.is_set():
            failure = self._failure()
            with self._lock:
                self.served += failure is None
                if failure is not None:
                    self.failures.append(failure)

    def _failure(self) -> Optional[str]:
        try:
            with connect(*self._where) as client:
                whole = all(echoes(client, b"x" * 1000) for _ in range(3))
                return None if whole else "the connection ended too early"
        except OSError as error:
            return repr(error)
