"""A network of a test's own: a network namespace with the names and routes that it wants.

It lives as long as a shell that waits for the end of its input. So nothing of it is left if the
test run dies. `wrapper` starts the proxy inside. It ends in an exec, so the pid stays the same. The
servers of the test stay threads of this process, and only their sockets are made inside. The path
of a Unix socket works from inside and from outside.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Callable, List, TypeVar

import pytest

from tests.support.timing import wait_until

PROJECT = Path(__file__).resolve().parents[2]
CLONE_NEWNET = 0x40000000
RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
# An answer may be on its way for half a minute; glibc waits no longer than 30 s.
PATIENT_RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n"
BEGIN = """
set -e
mount --bind "$1/resolv.conf" /etc/resolv.conf
[ ! -e /etc/nsswitch.conf ] || mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
ip link set lo up
echo ready
exec cat
"""
# What to put before a command to run it where nothing is in /proc.
WITHOUT_PROC = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
# A packet to a hardware address that the other end of the pair does not have is dropped there.
NOBODY = "02:00:00:00:00:01"
# Two networks that are joined.
CABLE, HERE, THERE = "cable", "198.18.0.1", "198.18.0.2"

T = TypeVar("T")


def why_not() -> str:
    """Why there can be no namespace here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root, for a network namespace"
    missing = [tool for tool in ("unshare", "nsenter", "ip", "mount") if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, check=False
    )
    return tried.stderr.decode().strip()


needs_namespace = pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be")


class Namespace:
    """A network with nothing in it but loopback, and a resolv.conf that names 127.0.0.1."""

    def __init__(self, folder: Path, resolv_conf: str = RESOLV_CONF) -> None:
        (folder / "resolv.conf").write_text(resolv_conf)
        (folder / "nsswitch.conf").write_text("hosts: files dns\n")
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", BEGIN, "sh", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", "no namespace"

    @property
    def wrapper(self) -> List[str]:
        """What to put before a command to run it inside."""
        return [
            *("nsenter", f"--target={self._holder.pid}", "--net", "--mount"),
            *("env", f"--chdir={PROJECT}"),
        ]

    def run(self, *command: str) -> None:
        """Run a command inside."""
        subprocess.run([*self.wrapper, *command], check=True)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is inside; a socket that it makes stays inside."""
        results: List[T] = []
        errors: List[Exception] = []

        def inside() -> None:
            try:
                self._enter()
                results.append(function())
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def add_address(self, address: str) -> None:
        """An address that belongs to this host."""
        self.run("ip", "address", "add", address, "dev", "lo", *_no_delay(address))
        self._wait_for_route(address)

    def add_black_holes(self, *addresses: str) -> None:
        """Addresses from which neither a packet nor an error ever comes back."""
        self.run("ip", "link", "add", "hole0", "type", "veth", "peer", "name", "hole1")
        for name in ("hole0", "hole1"):
            self.run("ip", "link", "set", name, "up")
        self.run("ip", "address", "add", "192.0.2.1/24", "dev", "hole0")
        self.run("ip", "address", "add", "2001:db8::1/64", "dev", "hole0", "nodad")
        for address in addresses:
            self._wait_for_route(address)
            self._send_to_nobody(address, "hole0")

    def join(self, other: Namespace) -> None:
        """A cable to another one: HERE is this end's address, THERE the other's."""
        pid = str(other._holder.pid)
        self.run("ip", "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", pid)
        for namespace, address in ((self, HERE), (other, THERE)):
            namespace.run("ip", "address", "add", f"{address}/24", "dev", CABLE)
            namespace.run("ip", "link", "set", CABLE, "up")

    def part(self) -> None:
        """Lose from now on every packet that is sent to the other end."""
        self._send_to_nobody(THERE, CABLE)

    def close(self) -> None:
        """End it; the kernel removes it with its last process and socket."""
        self._holder.communicate()

    def _wait_for_route(self, address: str) -> None:
        """The kernel makes an IPv6 route a moment after the address (addrconf_dad_work())."""
        command = [*self.wrapper, "ip", "route", "get", address]
        wait_until(
            lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0,
            f"there is a route to {address}",
        )

    def _send_to_nobody(self, address: str, device: str) -> None:
        self.run(
            *("ip", "neighbour", "replace", address),
            *("lladdr", NOBODY, "dev", device, "nud", "permanent"),
        )

    def _enter(self) -> None:
        # os.setns() is there from Python 3.12 on.
        fd = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)


def _no_delay(address: str) -> List[str]:
    """An IPv6 address is usable at once without the search for a duplicate."""
    return ["nodad"] if ":" in address else []
