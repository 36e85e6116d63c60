"""The root of a guest: a Python with its standard library, what a test adds, and nothing else.

It has no shell, no /proc, no /dev, no /tmp and no /etc. What a program misses there, it would also
miss in the smallest image of an enclave or microVM. All files are at the same places as on this
machine, because the interpreter and the loader look for them there.

`inside` puts a process of this machine into such a root, which it cannot write to. Packed into an
archive, the folder is a guest's initramfs (tests/vm).
"""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
from pathlib import Path
from typing import Callable, Iterable, List, Union

from tests.support.namespaces import why_not
from tests.support.program import PROJECT

Place = Union[str, Path]

# The example makes the root, so it is tested too.
EXAMPLE = runpy.run_path(str(PROJECT / "etc" / "guest" / "build-root"))
_build: Callable[[Path], None] = EXAMPLE["build"]
_copy: Callable[[Path, Path, Path], Path] = EXAMPLE["copy"]
_libraries_of: Callable[[Iterable[Path]], List[Path]] = EXAMPLE["libraries_of"]
ENTER = """
set -e
root=$1
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
shift
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$1"
    shift
done
shift
exec env -i "$(command -v chroot)" "$root" "$@"
"""


def why_no_root() -> str:
    """Why no process can be put into another root here; empty if one can."""
    missing = [tool for tool in ("chroot", "ldd", "mount") if not shutil.which(tool)]
    return why_not() or (f"needs {', '.join(missing)}" if missing else "")


def inside(root: Path, *writable: Path) -> List[str]:
    """What to put before a command to run it in this root, with an empty environment.

    writable: folders of this machine that the root also has, at the same places.
    """
    for folder in writable:
        (root / os.path.relpath(folder, "/")).mkdir(parents=True, exist_ok=True)
    words = [str(root), *map(str, writable), "--"]
    return ["unshare", "--mount", "sh", "-c", ENTER, "sh", *words]


class Root:
    """A folder that becomes the root of other processes.

    python: the interpreter in it.
    program: what runs vsock-proxy in it.
    """

    python = "/bin/python3"

    def __init__(self, folder: Path) -> None:
        """Put in the program, and this interpreter without its packages."""
        self.folder = folder
        _build(folder)
        self.program = self._put_program("/opt/vsock-proxy")

    def within(self, place: Place) -> Path:
        """The path on this machine of a place in the root."""
        return self.folder / os.path.relpath(place, "/")

    def put(self, source: Path, place: Place = "") -> None:
        """Copy a file or a folder of this machine to a place, by default its own."""
        _copy(source, self.folder, Path(place or source))

    def put_packages(self, place: str, *names: str) -> None:
        """Copy top-level modules or packages that this interpreter has into a folder.

        With the libraries that they need.
        """
        for name in names:
            source = _origin(name)
            self.put(source, f"{place}/{source.name}")
        for one in _libraries_of(list(self.within(place).rglob("*.so"))):
            self.put(one)

    def inside(self, *writable: Path) -> List[str]:
        """As the function of this name."""
        return inside(self.folder, *writable)

    def _put_program(self, place: str) -> List[str]:
        """As packaging/build-zipapp has it, but from what is here, and as a folder."""
        for name in ("vsock_proxy", "yaml", "docopt"):
            source = _origin(name)
            self.put(source, f"{place}/{source.name}")
        for compiled in self.within(place).rglob("*.so"):
            compiled.unlink()
        self.put(PROJECT / "packaging" / "launcher", f"{place}/__main__.py")
        return [self.python, "-I", place]


def _origin(name: str) -> Path:
    """Where a top-level module or package is."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    path = Path(module.__file__)
    return path.parent if path.name == "__init__.py" else path
