"""An enclave for the tests: a second virtual machine, started inside the first, over vhost-vsock.

To its guest the machine that starts it is CID 2, the parent. The guest is an initramfs as
docs/guest.md has it: a Python, this program with the services of a file, and a client, with AWS's
SDK; and besides, drivers, and a busybox that loads them.

It must not take minutes to boot. So the kernel is uncompressed and Python's files are compiled
beforehand; and QEMU uses KVM in the parent, whose emulated processor offers it, rather than emulate
on top of emulation.

The client reads commands from a serial line and answers there, as guest/client.py does.

`build` makes the guest on the host; `Enclave` runs it, in the parent.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.program import PROJECT
from tests.support.root import Root

from .bzimage import uncompressed
from .initramfs import pack, with_dependencies
from .kernel import Kernel, which

GUEST = Path(__file__).resolve().with_name("guest")
EXAMPLE = PROJECT / "etc" / "guest"
CLIENT = "/opt/client"
FILES = {
    "init": "/init",
    "client.py": f"{CLIENT}/__main__.py",
    "hosts": "/opt/hosts",
    "vsock-proxy.yaml": "/etc/nitro_enclaves/vsock-proxy.yaml",
}
# AWS's SDK and what it needs.
BOTO3 = ("boto3", "botocore", "dateutil", "jmespath", "s3transfer", "six", "urllib3")
DRIVERS = ("virtio_pci", "vmw_vsock_virtio_transport")
KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=4 panic=-1 mitigations=off tsc=reliable clocksource=tsc nokaslr"
)
KERNEL_VARIABLE = "VSOCK_PROXY_TEST_ENCLAVE_KERNEL"
INITRAMFS_VARIABLE = "VSOCK_PROXY_TEST_ENCLAVE_INITRAMFS"
BOOT_SECONDS = 240


@dataclass(frozen=True)
class Image:
    """What an enclave boots."""

    kernel: Path
    initramfs: Path

    def as_environment(self) -> dict[str, str]:
        return {KERNEL_VARIABLE: str(self.kernel), INITRAMFS_VARIABLE: str(self.initramfs)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Image:
        return cls(Path(environment[KERNEL_VARIABLE]), Path(environment[INITRAMFS_VARIABLE]))


def build(kernel: Kernel, folder: Path) -> Image:
    """Pack the guest's files, in the given folder."""
    root = Root(folder / "root")
    root.put_packages(CLIENT, *BOTO3)
    for service in root.within(f"{CLIENT}/botocore/data").iterdir():
        if service.is_dir() and service.name != "kms":
            shutil.rmtree(service)
    for name, place in FILES.items():
        root.put(GUEST / name, place)
    root.put(EXAMPLE / "start", "/opt/start")
    root.put(Path(which("busybox") or "busybox"), "/bin/busybox")
    _compile(root.within("/opt"))
    _put_drivers(kernel, root.within("/modules"))
    root.within("/dev").mkdir()
    vmlinux = folder / "vmlinux"
    vmlinux.write_bytes(uncompressed(kernel.image.read_bytes()))
    return Image(vmlinux, pack(root.folder, folder / "initramfs.cpio"))


def _compile(packages: Path) -> None:
    """Leave the emulated processor as little to compile as there is."""
    how = ("-q", "-j0", "--invalidation-mode", "unchecked-hash")
    subprocess.run([sys.executable, "-m", "compileall", *how, packages], check=True)


def _put_drivers(kernel: Kernel, folder: Path) -> None:
    folder.mkdir()
    drivers = with_dependencies(kernel, DRIVERS)
    for driver in drivers:
        shutil.copy(driver, folder)
    (folder / "order").write_text("".join(f"{driver.name}\n" for driver in drivers))


class Enclave:
    """A running enclave; its client is told what to do and answers over a serial line."""

    def __init__(self, process: subprocess.Popen[bytes], console: Path) -> None:
        self._process = process
        self._console = console
        self._unread = b""

    def ask(self, command: str, timeout: float) -> str:
        """Have the client run a command, and return what it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        answer = self.answer(timeout)
        assert answer.startswith("ok"), f"{answer}; {self._end_of_console()}"
        return answer

    def answer(self, timeout: float) -> str:
        """Return the client's next line."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise AssertionError(f"no answer in {timeout:.0f} s; {self._end_of_console()}")
            received = os.read(self._process.stdout.fileno(), 4096)
            if not received:
                raise AssertionError(f"the enclave ended; {self._end_of_console()}")
            self._unread += received
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def kill(self) -> None:
        """End it as a crash or `nitro-cli terminate-enclave` does: without a word to anyone."""
        self._process.kill()
        self._process.communicate()

    def _end_of_console(self) -> str:
        return f"the end of its console:\n{self._console.read_text(errors='replace')[-2000:]}"


@contextmanager
def running(image: Image, cid: int, folder: Path, memory: str = "384M") -> Iterator[Enclave]:
    """Start an enclave with that CID and wait until its client is ready.

    memory: must have room for the files twice, packed and unpacked.
    """
    subprocess.run(["modprobe", "kvm_amd"], check=False)
    console = folder / f"console-{cid}"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "kvm", "-accel", "tcg", "-m", memory),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", KERNEL_ARGUMENTS),
        *("-serial", f"file:{console}", "-serial", "stdio"),
        *("-device", f"vhost-vsock-pci,guest-cid={cid}"),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    enclave = Enclave(process, console)
    try:
        assert enclave.answer(BOOT_SECONDS) == "ready"
        yield enclave
    finally:
        enclave.kill()
