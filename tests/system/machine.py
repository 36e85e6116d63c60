"""Boots an image under QEMU's emulation and returns what the tests inside have said."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple, Optional

from tests.system.image import Image

KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 mitigations=off tsc=reliable clocksource=tsc nokaslr "
    "systemd.show_status=no loglevel=4"
)
MEMORY, PROCESSORS = "1G", 2
STATUS = "status "


class Result(NamedTuple):
    """status is None if the machine ended, or was ended, before its tests did."""

    status: Optional[int]
    output: str
    console: str


def boot(image: Image, folder: Path, timeout: float) -> Result:
    """Run the machine until it switches itself off, or until the time is over."""
    console, output = folder / "console", folder / "output"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "tcg", "-m", MEMORY, "-smp", str(PROCESSORS)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", KERNEL_ARGUMENTS),
        *("-drive", f"file={image.disk},format=raw,if=virtio,cache=unsafe"),
        *("-serial", f"file:{console}", "-serial", f"file:{output}"),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    said = output.read_text(errors="replace").replace("\r", "")
    lines = said.splitlines()
    status = int(lines.pop()[len(STATUS) :]) if lines and lines[-1].startswith(STATUS) else None
    return Result(status, "\n".join(lines), console.read_text(errors="replace"))
