"""The machine and the versions behind the figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Dict, List


def describe(python: str, source: Path) -> Dict[str, str]:
    return {
        "date": date.today().isoformat(),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "virtual machine": _first_line(["systemd-detect-virt", "--vm"]) or "not known",
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "vsock-proxy": _proxy_version(python, source),
        "Python": _first_line([python, "--version"]).replace("Python ", ""),
        "socat": _find(r"socat version (\S+)", ["socat", "-V"]),
        "systemd": _find(r"systemd \d+ \((.+)\)", ["systemctl", "--version"]),
        "C compiler": _first_line(["cc", "--version"]),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _proxy_version(python: str, source: Path) -> str:
    version = _first_line([python, "-m", "vsock_proxy", "--version"], cwd=source)
    commit = _first_line(["git", "-C", str(source), "describe", "--always", "--dirty"])
    return f"{version or 'not known'}, commit {commit}" if commit else version or "not known"


def _output(command: List[str], cwd: Path = Path("/")) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _first_line(command: List[str], cwd: Path = Path("/")) -> str:
    return _output(command, cwd).split("\n")[0]


def _find(pattern: str, command: List[str]) -> str:
    found = re.search(pattern, _output(command))
    return found.group(1) if found else "not installed"
