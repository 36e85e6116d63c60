"""The wings of the package: each imports only from those below it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator

import pytest

import vsock_proxy

pytestmark = pytest.mark.hybrid_only

ROOT = Path(vsock_proxy.__file__).parent
FACE, WORDS_OF_ALL = "the face", "words of all"
FACE_MODULES = ("__main__", "cli")
# From the top down, as docs/architecture.md shows them.
WINGS = [
    FACE,
    "supervision",
    "serving",
    "observing",
    "endpoint",
    "config",
    "process",
    WORDS_OF_ALL,
]
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def wing_of(name: str) -> str:
    """The wing of a module, by its full name."""
    _, first, *more = name.split(".")
    if more or first in WINGS:
        return first
    return FACE if first in FACE_MODULES else WORDS_OF_ALL


def name_of(path: Path) -> str:
    return ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts))


def imported(path: Path) -> Iterator[str]:
    """The full names of the package's modules that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(ROOT.name))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOT.name):
            for alias in node.names:
                yield _module(f"{node.module}.{alias.name}")


def _module(name: str) -> str:
    """What is imported may be a module, or a name in one."""
    path = ROOT.parent.joinpath(*name.split("."))
    return name if path.is_dir() or path.with_suffix(".py").is_file() else name.rpartition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_nothing_from_a_wing_above_its_own(path: Path) -> None:
    own = WINGS.index(wing_of(name_of(path)))
    above = [
        name for name in imported(path) if name != ROOT.name if WINGS.index(wing_of(name)) < own
    ]
    assert above == []


def test_every_folder_is_a_wing() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders == set(WINGS) - {FACE, WORDS_OF_ALL}
