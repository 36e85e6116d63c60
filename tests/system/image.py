"""A disk with a Debian system on it: the package installed, and the tests that are to run inside.

What comes from Debian is kept in the cache folder, so that later runs need no network; everything
of this project is put on top of it each time.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from tests.support.program import PROJECT
from tests.vm.bzimage import uncompressed
from tests.vm.initramfs import pack, with_dependencies
from tests.vm.kernel import Kernel, Lacking, cache_folder, locked, require_commands, which

DEBIAN_NEEDS = {"mmdebstrap": "mmdebstrap"}
NEEDED = {"mke2fs": "e2fsprogs", "busybox": "busybox-static", **DEBIAN_NEEDS}
SUITE = "bookworm"
# The dependencies of the package are not told here what for: were one missing in the package, its
# installation would succeed all the same, but tests/packages knows what it must depend on.
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "iproute2", "openssl", "python3-pytest"),
    *("python3-docopt", "python3-setproctitle", "python3-yaml"),
)
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
CACHED = f"system-{SUITE}-{zlib.crc32(' '.join(PACKAGES).encode()):08x}.tar"
BOOT_DRIVERS = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
# What the booted system loads itself.
SYSTEM_DRIVERS = ("dummy", "vsock", "vsock_loopback")
DISK_SIZE = "1G"
MASKED = ("serial-getty@ttyS0.service", "getty@tty1.service", "apt-daily.timer")
ENABLED = (
    "world.service",
    "tests.service",
    "nitro-enclaves-vsock-proxy.service",
    "nitro-enclaves-vsock-proxy.socket",
)
WORLD = """\
[Unit]
Before=network-online.target nitro-enclaves-vsock-proxy.service vsock-proxy.service

[Service]
Type=notify
NotifyAccess=all
WorkingDirectory=/srv
ExecStart=/usr/bin/python3 -m tests.system.inside.world

[Install]
WantedBy=multi-user.target
"""
COMMAND = (
    "python3 -m pytest -v -ra --color=no --durations=5 -p no:cacheprovider "
    "tests/system/inside/installed_service.py tests/system/inside/many_services.py"
)
TESTS = f"""\
[Unit]
Wants=world.service
After=world.service

[Service]
WorkingDirectory=/srv
Environment=COLUMNS=100 PYTHONDONTWRITEBYTECODE=1
ExecStartPre=/sbin/modprobe vsock_loopback
ExecStart=/bin/sh -c '{COMMAND} >/dev/ttyS1 2>&1; echo "status $?" >/dev/ttyS1'
ExecStopPost=/bin/systemctl poweroff --force

[Install]
WantedBy=multi-user.target
"""
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module"
done </modules/order
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""


@dataclass(frozen=True)
class Image:
    """What the machine boots."""

    kernel: Path
    initramfs: Path
    disk: Path


def require_means() -> None:
    """Raise Lacking where no image can be made."""
    require_debian()
    if platform.machine() != "x86_64":
        raise Lacking("the booted system needs a Debian machine on x86_64, to be made from")
    require_commands(NEEDED)


def require_debian() -> None:
    """Raise Lacking where no folder can be filled with a Debian system."""
    if os.geteuid() != 0:
        raise Lacking("a Debian system needs root, for the owners of its files")
    if not any(Path(source).exists() for source in SOURCES):
        raise Lacking("a Debian system needs a Debian machine, to be made from")
    require_commands(DEBIAN_NEEDS)


def build(kernel: Kernel, installed: Path, newer: Path, folder: Path) -> Image:
    """Make the image in a folder: one package installed, a newer one at hand."""
    root = folder / "root"
    root.mkdir()
    _run("tar", "-x", "-C", root, "-f", debian())
    _add_modules(kernel, root)
    packages = root / "srv" / "packages"
    packages.mkdir()
    shutil.copy(installed, packages / "installed.deb")
    shutil.copy(newer, packages / "newer.deb")
    _add_tests(root)
    _run("chroot", root, "dpkg", "-i", "/srv/packages/installed.deb")
    _run("systemctl", "--root", root, "mask", *MASKED)
    _run("systemctl", "--root", root, "enable", *ENABLED)
    _run("systemctl", "--root", root, "set-default", "multi-user.target")
    # Without an identity the system would take this for its first boot, and enable everything.
    (root / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    disk = folder / "disk"
    _run("mke2fs", "-q", "-t", "ext4", "-d", root, disk, DISK_SIZE)
    vmlinux = folder / "vmlinux"
    vmlinux.write_bytes(uncompressed(kernel.image.read_bytes()))
    return Image(vmlinux, _initramfs(kernel, folder), disk)


def debian() -> Path:
    """The archive of a Debian system, from the cache or else made now."""
    cache = cache_folder()
    archive = cache / CACHED
    with locked(cache / "system-lock"):
        if not archive.exists():
            making = cache / f"making-{CACHED}"
            sources = [source for source in SOURCES if Path(source).exists()]
            _run(
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
                *("--include", ",".join(PACKAGES), "--dpkgopt=path-exclude=/usr/share/doc/*"),
                *("--dpkgopt=path-exclude=/usr/share/locale/*", SUITE, making, *sources),
            )
            making.rename(archive)
    return archive


def _add_tests(root: Path) -> None:
    """The tests that run inside, with what they need of the support for tests."""
    ignored = shutil.ignore_patterns("__pycache__")
    tests = root / "srv" / "tests"
    here = PROJECT / "tests"
    for part in ("support", "system/inside"):
        shutil.copytree(here / part, tests / part, ignore=ignored)
    for part in (".", "system"):
        (tests / part / "__init__.py").touch()
    (root / "srv" / "docs").mkdir()
    shutil.copy(PROJECT / "docs" / "install.md", root / "srv" / "docs")
    (root / "srv" / "pytest.ini").write_text("[pytest]\n")
    units = root / "etc" / "systemd" / "system"
    (units / "world.service").write_text(WORLD)
    (units / "tests.service").write_text(TESTS)


def _add_modules(kernel: Kernel, root: Path) -> None:
    target = root / "lib" / "modules" / kernel.version
    for driver in with_dependencies(kernel, SYSTEM_DRIVERS):
        place = target / driver.relative_to(kernel.modules)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(driver, place)
    for name in ("modules.builtin", "modules.order"):
        shutil.copy(kernel.modules / name, target)
    _run(which("depmod") or "depmod", "-b", root, kernel.version)


def _initramfs(kernel: Kernel, folder: Path) -> Path:
    """The few files that find the disk."""
    root = folder / "initramfs"
    for name in ("bin", "dev", "modules", "root"):
        (root / name).mkdir(parents=True)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    shutil.copy(which("busybox") or "busybox", root / "bin" / "busybox")
    drivers = with_dependencies(kernel, BOOT_DRIVERS)
    for driver in drivers:
        shutil.copy(driver, root / "modules")
    (root / "modules" / "order").write_text("".join(f"{driver.name}\n" for driver in drivers))
    return pack(root, folder / "initramfs.cpio")


def _run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}"
    return done.stdout
