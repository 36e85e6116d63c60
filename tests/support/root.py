"""The root of a guest: a Python with its standard library, what is put beside it, and nothing else.

No shell, no /proc, no /dev, no /tmp, no /etc: what a program finds missing there, it would find
missing in the smallest image of an enclave or microVM. All is at the place that it has on this
machine, where the interpreter and the loader look for it.

A process of this machine can be put into such a root, which it cannot write to (`inside`); and
packed into an archive the folder is a guest's initramfs (tests/vm).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Iterable, List, Set

import vsock_proxy
from tests.support.namespaces import why_not

# What no program needs of the standard library, and most of its size.
LEFT_OUT = (
    *("config-*", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data"),
    *("site-packages", "test", "tests", "tkinter", "turtledemo"),
    *("*.opt-*.pyc", "_test*", "_tkinter*", "_xxtestfuzz*", "xxlimited*"),
)
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


class Root:
    """A folder that is to be the root of others.

    python: the interpreter in it.
    program: what runs vsock-proxy in it.
    """

    python = "/bin/python3"

    def __init__(self, folder: Path) -> None:
        """Put this interpreter in, without the packages that it has here, and the program."""
        self.folder = folder
        # In a virtual environment the interpreter's own place is known by that name only.
        program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        library = Path(sysconfig.get_path("stdlib"))
        self.put(program)
        self.put(library)
        modules = [self.within(library), self.within(sysconfig.get_path("platstdlib"))]
        self.put_libraries(program, *(path for one in modules for path in one.rglob("*.so")))
        link = self.within(self.python)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(program)
        self.program = self._put_program("/vsock-proxy")

    def within(self, place: str | os.PathLike[str]) -> Path:
        """Where in this machine's files a place of the root is."""
        return self.folder / os.path.relpath(place, "/")

    def put(self, source: Path, place: str | os.PathLike[str] = "") -> str:
        """Copy a file or a folder of this machine to a place, by default its own; that place."""
        target = self.within(place or source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(
                source,
                target,
                symlinks=True,
                ignore=shutil.ignore_patterns(*LEFT_OUT),
                dirs_exist_ok=True,
            )
        else:
            shutil.copy2(source, target)
        return str(place or source)

    def put_libraries(self, *programs: Path) -> None:
        """Copy the shared libraries that programs need, and the loader."""
        for library in _libraries(programs):
            if not self.within(library).exists():
                self.put(library)

    def put_packages(self, *names: str) -> None:
        """Copy top-level modules or packages that this interpreter has, with what is compiled."""
        library = self.within(sysconfig.get_path("stdlib"))
        for name in names:
            source = _origin(name)
            target = library / "site-packages" / source.name
            self.put(source, "/" / target.relative_to(self.folder))
            self.put_libraries(*target.rglob("*.so"))

    def inside(self, *writable: Path) -> List[str]:
        """What to put before a command to run it in here, with an empty environment.

        writable: folders of this machine that are there too, at their own places.
        """
        for folder in writable:
            self.within(folder).mkdir(parents=True, exist_ok=True)
        words = [str(self.folder), *map(str, writable), "--"]
        return ["unshare", "--mount", "sh", "-c", ENTER, "sh", *words]

    def _put_program(self, place: str) -> List[str]:
        """As packaging/build-zipapp has it, but from what is here, and as a folder."""
        self.put(Path(vsock_proxy.__file__).parent, f"{place}/vsock_proxy")
        for name in ("yaml", "docopt"):
            source = _origin(name)
            self.put(source, f"{place}/{source.name}")
        for compiled in self.within(place).rglob("*.so"):
            compiled.unlink()
        launcher = Path(vsock_proxy.__file__).parents[1] / "packaging" / "launcher"
        self.put(launcher, f"{place}/__main__.py")
        return [self.python, "-I", place]


def _origin(name: str) -> Path:
    """Where a top-level module or package is."""
    module = __import__(name)
    assert module.__file__ is not None
    path = Path(module.__file__)
    return path.parent if path.name == "__init__.py" else path


def _libraries(programs: Iterable[Path]) -> List[Path]:
    """All that ldd(1) names; it takes a program's word for where its libraries are."""
    shown = subprocess.run(
        ["ldd", *map(str, programs)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    found: Set[str] = set(re.findall(r"(/\S+) \(0x[0-9a-f]+\)$", shown, re.MULTILINE))
    return [Path(path) for path in sorted(found)]
