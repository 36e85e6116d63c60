"""A Linux kernel for the tests' virtual machine: Debian's own, unpacked but never installed.

Why not the running kernel: few machines have one that may be borrowed, with AF_VSOCK's loopback
transport and a 9p file system in it. Debian's `linux-image-amd64` has both (its cloud flavour has
no 9p). The package is unpacked into a cache folder and nothing of the machine is touched: QEMU
takes the image from there, and the virtual machine its modules.

A kernel found in the cache is used as it is, so that later runs need no network. Otherwise apt is
asked with package lists of our own, fetched for the occasion: those of the machine may be absent,
or so old that the package they name has left the mirror.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

METAPACKAGE = "linux-image-amd64"
PACKAGE_PREFIX = "linux-image-"
SCRATCH_PREFIX = "fetching-"
UNPACKED_PREFIX = "kernel-"
DYNAMIC_LOADER = b"/ld-linux-x86-64.so"
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
NEEDED = {
    "busybox": "busybox-static",
    "depmod": "kmod",
    "ip": "iproute2",
    "qemu-system-x86_64": "qemu-system-x86",
    "udevadm": "udev",
}
NEEDED_TO_FETCH = {"apt-get": "apt", "dpkg-deb": "dpkg", "xz": "xz-utils"}


class Lacking(Exception):
    """This machine lacks the means to run a virtual machine; the message says which."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    version: str
    root: Path

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self) -> Path:
        """The folder that modprobe would look for as /lib/modules/VERSION."""
        return self.root / "lib" / "modules" / self.version


def obtain() -> Kernel:
    """Return a kernel from the cache, fetched first if there is none. Raises Lacking."""
    require_platform()
    require_commands(NEEDED)
    _require_static_busybox()
    cache = cache_folder()
    with locked(cache / "lock"):
        return _newest_unpacked(cache) or _fetch(cache)


def require_platform() -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Lacking(
            "the virtual machine needs Linux on x86_64, "
            f"this is {platform.system()} on {platform.machine()}"
        )


def require_commands(packages: dict[str, str]) -> None:
    """Raise Lacking unless each command, a key, is there; its value is the package that has it."""
    missing = {package for command, package in packages.items() if which(command) is None}
    if missing:
        names = " ".join(sorted(missing))
        raise Lacking(f"Debian packages are missing; install them: apt-get install {names}")


def _require_static_busybox() -> None:
    """The package busybox has the same command, which the virtual machines cannot start."""
    with open(which("busybox") or "busybox", "rb") as program:
        if DYNAMIC_LOADER in program.read(4096):
            raise Lacking("busybox is dynamically linked; run: apt-get install busybox-static")


def which(command: str) -> str | None:
    """Find a command also where an ordinary user's PATH does not look, as in /usr/sbin."""
    return shutil.which(
        command, path=os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_FOLDERS))
    )


def cache_folder() -> Path:
    """Return where what was fetched is kept from one run to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "vsock-proxy-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time fetch; the others wait and then find what it fetched."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _newest_unpacked(cache: Path) -> Kernel | None:
    folders = sorted(cache.glob(f"{UNPACKED_PREFIX}*"), key=lambda folder: folder.stat().st_mtime)
    if not folders:
        return None
    return Kernel(folders[-1].name[len(UNPACKED_PREFIX) :], folders[-1])


def _fetch(cache: Path) -> Kernel:
    """Download and unpack the kernel; it appears in the cache whole or not at all."""
    require_commands(NEEDED_TO_FETCH)
    for abandoned in cache.glob(f"{SCRATCH_PREFIX}*"):
        shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=cache) as scratch:
        apt = Apt(Path(scratch) / "apt")
        complaint = apt.update()
        package = _image_package(apt.depends(METAPACKAGE), complaint)
        unpacked = Kernel(package[len(PACKAGE_PREFIX) :], Path(scratch) / "root")
        subprocess.run(["dpkg-deb", "-x", apt.download(package), unpacked.root], check=True)
        _make_modules_loadable(unpacked)
        unpacked.root.chmod(0o755)
        kept = Kernel(unpacked.version, cache / f"{UNPACKED_PREFIX}{unpacked.version}")
        unpacked.root.rename(kept.root)
        return kept


def _image_package(dependencies: str, complaint: str) -> str:
    found = re.search(rf"Depends: ({PACKAGE_PREFIX}\d\S*)", dependencies)
    if found is None:
        raise Lacking(f"apt knows no {METAPACKAGE}, which Debian has: {complaint or 'not offered'}")
    return found.group(1)


def _make_modules_loadable(kernel: Kernel) -> None:
    """Undo what differs between releases: newer ones move /lib to /usr/lib and compress modules."""
    if not kernel.modules.is_dir():
        (kernel.root / "lib").symlink_to("usr/lib")
    compressed = "\0".join(str(path) for path in kernel.modules.rglob("*.ko.xz"))
    if compressed:
        at_once = str(os.cpu_count() or 1)
        uncompress = ["xargs", "-0", "-n", "64", "-P", at_once, "xz", "-d"]
        subprocess.run(uncompress, input=compressed, text=True, check=True)
    depmod = which("depmod") or "depmod"
    subprocess.run([depmod, "-b", kernel.root, kernel.version], check=True)


@dataclass(frozen=True)
class Apt:
    """apt with its state in a folder of its own; needs no root and disturbs no other apt."""

    folder: Path

    def update(self) -> str:
        """Fetch the lists. One source of several may fail: return what apt complained of."""
        for name in ("lists/partial", "archives/partial"):
            (self.folder / name).mkdir(parents=True)
        return _last_line(self._apt("apt-get", "update").stderr)

    def depends(self, package: str) -> str:
        return self._apt("apt-cache", "depends", package).stdout

    def download(self, package: str) -> Path:
        done = self._apt("apt-get", "download", package)
        if done.returncode != 0:
            raise Lacking(f"{package} cannot be downloaded: {_last_line(done.stderr)}")
        return next(self.folder.glob(f"{package}_*.deb"))

    def _apt(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "APT::Sandbox::User": "root",  # the sandbox's user could not enter a private folder
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::Cache": str(self.folder),
            "Dir::State::Lists": f"{self.folder}/lists",
        }
        options = [f"-o{name}={value}" for name, value in settings.items()]
        return subprocess.run(
            [tool, "-qq", *options, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
