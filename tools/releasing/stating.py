"""Where the source states the version.

`__version__` is the one source: setup.py and the scripts in packaging/ read it. What cannot read it
is listed here, and is written together with it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Set

from tools.releasing.failure import Failed

# File, and what stands around the version there.
SOURCE = "vsock_proxy/__init__.py"
PLACES = {
    SOURCE: re.compile(r'(?m)(?<=^__version__ = ")[^"]+(?="$)'),
    "etc/kubernetes/vsock-proxy.yaml": re.compile(r"(?m)(?<= image: vsock-proxy:)\S+$"),
}


def stated(root: Path) -> Dict[str, Set[str]]:
    """The versions that each of these files states."""
    return {
        name: set(pattern.findall((root / name).read_text(encoding="utf-8")))
        for name, pattern in PLACES.items()
    }


def state(root: Path, version: str) -> None:
    """Write the version wherever it stands."""
    for name, pattern in PLACES.items():
        path = root / name
        text, changes = pattern.subn(version, path.read_text(encoding="utf-8"))
        if changes == 0:
            raise Failed(f"{name}: no version stands there; mend tools/releasing/stating.py")
        path.write_text(text, encoding="utf-8")


def check(root: Path, version: str) -> None:
    """Refuse a source that states another version."""
    for name, versions in stated(root).items():
        if versions != {version}:
            found = ", ".join(sorted(versions)) or "no version"
            raise Failed(
                f"{name} states {found}, and the heading of CHANGELOG.md {version}; make them equal"
            )
