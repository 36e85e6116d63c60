"""What a fresh machine lacks for the tests and the demonstration, and how to get it.

Only the standard library, since nothing is installed yet. Python packages go into a virtual
environment of the project, which nothing else sees; Debian packages are installed only where that
needs no password, and are named where it cannot be done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterable, List, Optional

PROJECT = Path(__file__).resolve().parents[1]
ENVIRONMENT = PROJECT / ".venv"
APT_GET = (
    *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get"),
    *("-q", "-y", "-o", "DPkg::Lock::Timeout=300"),
)


def python_with(*requirements: str) -> str:
    """The interpreter of the project's virtual environment, with these packages in it."""
    python = ENVIRONMENT / "bin" / "python"
    if not _has_pip(python):
        say(f"making the virtual environment {ENVIRONMENT}")
        _make_environment()
    say(f"installing {' '.join(requirements)} into it")
    quietly = ["--quiet", "--disable-pip-version-check", "--use-pep517"]
    run_or_exit([str(python), "-m", "pip", "install", *quietly, *requirements])
    return str(python)


def install_debian(packages: Iterable[str]) -> List[str]:
    """Install those that are not; returns those still lacking."""
    lacking = _not_installed(packages)
    prefix = _as_root()
    if not lacking or prefix is None or shutil.which("apt-get") is None:
        return lacking
    say(f"installing the Debian packages {' '.join(lacking)}")
    # A fresh machine has no lists of packages; a failed update may still leave what is needed.
    subprocess.run([*prefix, *APT_GET, "update"], stdin=subprocess.DEVNULL, check=False)
    install = [*prefix, *APT_GET, "install", "--no-install-recommends", *lacking]
    subprocess.run(install, stdin=subprocess.DEVNULL, check=False)
    return _not_installed(lacking)


def need_venv() -> None:
    """See to it that this interpreter can make virtual environments.

    Debian keeps what `python3 -m venv` needs in a package of its own.
    """
    if not _can_make_environment() and install_debian(["python3-venv"]):
        raise SystemExit(
            f"{sys.executable} cannot make virtual environments; install Debian's python3-venv, "
            "or run this with a Python that has the modules venv and ensurepip"
        )


def say(text: str) -> None:
    """Tell what goes on; before the output of what is run next."""
    print(f"== {text}", flush=True)


def run_or_exit(command: List[str]) -> None:
    """Run a command without which there is no going on."""
    status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    if status:
        raise SystemExit(f"failed with exit code {status}: {' '.join(command)}")


def _make_environment() -> None:
    need_venv()
    run_or_exit([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)])


def _can_make_environment() -> bool:
    check = [sys.executable, "-c", "import ensurepip, venv"]
    return not subprocess.run(check, capture_output=True, check=False).returncode


def _has_pip(python: Path) -> bool:
    if not python.exists():
        return False
    check = [str(python), "-m", "pip", "--version"]
    return not subprocess.run(check, capture_output=True, check=False).returncode


def _as_root() -> Optional[List[str]]:
    """What to put before a command that needs root, None if that asks for a password."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    if shutil.which("sudo") is None:
        return None
    check = subprocess.run(
        [*sudo, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return None if check.returncode else sudo


def _not_installed(packages: Iterable[str]) -> List[str]:
    return [package for package in packages if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "installed"
