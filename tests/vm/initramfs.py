"""An initramfs for a kernel of kernel.py: drivers in the order to load them, and the archive."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Iterable, List

from .kernel import Kernel, which


def with_dependencies(kernel: Kernel, names: Iterable[str]) -> List[Path]:
    """The files of the drivers, each after those that it depends on."""
    found: dict[Path, None] = {}
    modprobe = [which("modprobe") or "modprobe", "--show-depends", "--dirname", str(kernel.root)]
    for name in names:
        shown = subprocess.run(
            [*modprobe, "--set-version", kernel.version, name],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        words = [line.split() for line in shown.splitlines()]
        found.update((Path(path), None) for action, path, *_ in words if action == "insmod")
    return list(found)


def pack(root: Path, archive: Path) -> Path:
    """Put all files below a folder into an archive that the kernel unpacks."""
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    with archive.open("wb") as packed:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            cwd=root,
            input=names.encode(),
            stdout=packed,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return archive
