"""Run one command in a virtual machine that has AF_VSOCK and this machine's own files.

virtme-ng boots the kernel of kernel.py under QEMU's emulation; /dev/kvm is left alone even where it
exists, so that the tests run the same everywhere. `enter.sh` then prepares the machine and runs the
command, as root, with all files of this machine in their places and writable: what it changes, it
changes in the virtual machine only.

The command's output and exit status come back as files in a folder shared with the virtual
machine. They pass through no terminal: there may be none, as under CI, and what the kernel prints
on its console cannot be mistaken for the command's output.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import kernel
from .kernel import Kernel, Lacking

# How many times slower than this machine the emulated one is, to be on the safe side.
SLOWNESS = 10
POLL_SECONDS = 0.2
CONSOLE_LINES_KEPT = 40
ENTER = Path(__file__).resolve().with_name("enter.sh")
PROJECT = ENTER.parents[2]
# Drivers of devices that no test uses; udev would spend half the boot loading them. And the
# emulated processor's clock is good: the kernel must not settle for the HPET, slow to read.
KERNEL_ARGUMENTS = (
    "modprobe.blacklist=acpi_cpufreq,aesni_intel,ahci,bochs,button,crc32_pclmul,crct10dif_pclmul,"
    "evdev,ghash_clmulni_intel,i2c_i801,i6300esb,iTCO_wdt,joydev,kvm,kvm_amd,kvm_intel,lpc_ich,"
    "pcspkr,powernow_k8,psmouse,serio_raw,sg,sha1_ssse3,sha256_ssse3,sha512_ssse3,sr_mod",
    "mitigations=off",
    "tsc=reliable",
    "clocksource=tsc",
    "loglevel=5",
)
DEFAULT_MODULES = ("vsock_loopback",)
PASSED_ON = ("CI", "LANG", "PYENV_VERSION", "PYTHONPATH", "VIRTUAL_ENV")


# Runs a command until the standard input ends, which it does when this process ends, in whatever
# way; then ends the whole process group, a QEMU being no child of this process.
OUTLIVE_NOBODY = '"$@" </dev/null & exec >/dev/null 2>&1; cat; kill -KILL 0'


@dataclass(frozen=True)
class Means:
    """What it takes to run a virtual machine."""

    virtme_ng: str
    kernel: Kernel


class Result(NamedTuple):
    """How the command in the virtual machine ended."""

    status: int
    output: str


class MachineFailed(Exception):
    """The command was not run to its end: the machine did not boot, crashed or was late."""


def find_means() -> Means:
    """Find what it takes, the kernel fetched if need be. Raises Lacking."""
    return Means(_virtme_ng(), kernel.obtain())


def run_in_vm(
    command: Sequence[str],
    *,
    timeout: float,
    modules: Sequence[str] = DEFAULT_MODULES,
    environment: Mapping[str, str] | None = None,
    memory: str = "2G",
    cpus: int = 2,
) -> Result:
    """Boot a virtual machine and run the command in it, in the project's folder.

    The output is also written to sys.stdout as it comes. Raises Lacking where there are no means to
    run a virtual machine, MachineFailed when the command could not be run to its end in time.
    """
    means = find_means()
    with tempfile.TemporaryDirectory(prefix="vsock-proxy-vm-") as folder:
        exchange = Exchange(Path(folder))
        exchange.put_command(command, environment or {})
        options = _options(means.kernel, exchange, modules, memory, cpus)
        with _started([means.virtme_ng, *options]) as process:
            return _follow(process, exchange, timeout)


def _virtme_ng() -> str:
    """Find vng where this interpreter's packages have their commands, before the PATH."""
    beside_python = os.path.dirname(sys.executable)
    found = shutil.which("vng", path=os.pathsep.join((beside_python, os.environ.get("PATH", ""))))
    if found is None:
        raise Lacking("the Python package virtme-ng is missing; install it: pip install virtme-ng")
    return found


@dataclass(frozen=True)
class Exchange:
    """The folder through which the command goes in, and its output and status come out."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def put_command(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        inherited = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        variables = {
            "PATH": os.pathsep.join((os.environ.get("PATH", ""), *kernel.SYSTEM_FOLDERS)),
            "HOME": "/root",
            "TMPDIR": "/run/tmp",
            "TERM": "dumb",
            **inherited,
            **environment,
        }
        assignments = [f"{name}={value}" for name, value in variables.items()]
        self.output.touch()
        (self.folder / "command").write_text(
            f"cd {shlex.quote(str(PROJECT))}\n"
            f"exec {shlex.join(['env', '-i', *assignments, *command])}\n"
        )

    def status(self) -> int | None:
        try:
            return int((self.folder / "status").read_text())
        except FileNotFoundError:
            return None


def _options(
    booted: Kernel, exchange: Exchange, modules: Sequence[str], memory: str, cpus: int
) -> list[str]:
    enter = ["sh", str(ENTER), *modules]
    shares = [*_share("host", Path("/"), "readonly=on"), *_share("exchange", exchange.folder)]
    return [
        "--disable-kvm",
        "--force-9p",
        "--user=root",
        "--verbose",
        f"--run={shlex.quote(str(booted.image))}",
        f"--memory={memory}",
        f"--cpus={cpus}",
        f"--append={' '.join(KERNEL_ARGUMENTS)}",
        f"--exec={shlex.join(enter)}",
        f"--qemu-opts={shlex.join(shares)}",
    ]


def _share(tag: str, folder: Path, *settings: str) -> list[str]:
    path = str(folder).replace(",", ",,")
    backend = ",".join(
        ("local", f"id={tag}", f"path={path}", "security_model=none", "multidevs=remap", *settings)
    )
    return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


@contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start virtme-ng in a process group of its own, and leave nothing of the group behind."""
    beside_vng = os.path.dirname(command[0])
    search = (beside_vng, os.environ.get("PATH", ""), *kernel.SYSTEM_FOLDERS)
    process = subprocess.Popen(
        ["sh", "-c", OUTLIVE_NOBODY, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": os.pathsep.join(search)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.communicate()


def _follow(process: subprocess.Popen[bytes], exchange: Exchange, timeout: float) -> Result:
    """Show the output as it grows, until the status is there."""
    deadline = time.monotonic() + timeout
    console = bytearray()
    shown: list[str] = []
    ended = False
    with exchange.output.open(encoding="utf-8", errors="replace") as output:
        while True:
            status = exchange.status()  # before the output, which is whole once this is there
            shown.append(output.read())
            sys.stdout.write(shown[-1])
            if status is not None:
                return Result(status, "".join(shown))
            if ended:
                raise MachineFailed(
                    _explain("ended without running the command to its end", console)
                )
            if time.monotonic() > deadline:
                raise MachineFailed(
                    _explain(f"was not done in {timeout:.0f} s; killed it", console)
                )
            ended = not _read_console(process, console)


def _read_console(process: subprocess.Popen[bytes], console: bytearray) -> bool:
    """Wait a moment for what the machine prints on its console; False once the machine is off."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], POLL_SECONDS)
    if not readable:
        return True
    printed = os.read(process.stdout.fileno(), 65536)
    console += printed
    return bool(printed)


def _explain(what: str, console: bytearray) -> str:
    lines = console.decode(errors="replace").splitlines()[-CONSOLE_LINES_KEPT:]
    return "\n".join((f"the virtual machine {what}; the end of its console:", *lines))
