"""Builds all packages twice, which must give equal bytes.

Each time the source is what the commit has, in a folder of its own; umask, time zone, locale and
the times of the files differ. So a package that depends on the machine is found here, not by a user
who builds it again and gets another digest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from tools.releasing.failure import Failed
from tools.releasing.heading import Release

SUMS = "SHA256SUMS"
# The scripts in packaging/, and what follows the folder that takes what they build.
BUILDS = (
    ("build-python",),
    ("build-zipapp",),
    ("build-deb",),
    ("build-rpm", "x86_64"),
    ("build-rpm", "aarch64"),
    ("build-sbom",),
)
LAST_LINES = 20


@dataclass(frozen=True)
class Surroundings:
    """What may differ from machine to machine.

    extract: options of tar(1), on which the times of the files depend.
    """

    umask: int
    environment: Dict[str, str]
    extract: Tuple[str, ...]


# Between these two time zones it is never the same day.
FIRST = Surroundings(0o022, {"TZ": "Etc/GMT+12", "LC_ALL": "C"}, ("-x",))
SECOND = Surroundings(0o077, {"TZ": "Etc/GMT-14", "LC_ALL": "tr_TR.UTF-8"}, ("-x", "-m"))


def build_twice(root: Path, release: Release, scratch: Path) -> Tuple[Path, Path]:
    """Build the commit that is checked out; returns the two folders with all files."""
    return (
        _build(root, release, FIRST, scratch / "first"),
        _build(root, release, SECOND, scratch / "second, elsewhere"),
    )


def publish(builds: Tuple[Path, Path], target: Path) -> None:
    """Put the files and their digests into a folder, once both builds are equal."""
    sums, others = map(digests, builds)
    differing = differences(sums, others)
    if differing:
        kept = [target.with_name(f"{target.name}-{name}") for name in ("first", "second")]
        for built, folder in zip(builds, kept):
            shutil.copytree(built, folder, dirs_exist_ok=True)
        raise Failed(
            f"two builds differ in {', '.join(differing)}; "
            f"compare them, as with diffoscope: {kept[0]} {kept[1]}"
        )
    shutil.copytree(builds[0], target, dirs_exist_ok=True)
    listed = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    (target / SUMS).write_text(listed, encoding="utf-8")


def digests(folder: Path) -> Dict[str, str]:
    """Name to SHA-256, of all files in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def differences(first: Dict[str, str], second: Dict[str, str]) -> List[str]:
    """The files that are not in both with the same bytes."""
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


def _build(root: Path, release: Release, surroundings: Surroundings, folder: Path) -> Path:
    source, built = folder / "source", folder / "built"
    source.mkdir(parents=True)
    built.mkdir()
    _extract(root, source, surroundings)
    environment = {
        **os.environ,
        **surroundings.environment,
        "SOURCE_DATE_EPOCH": str(release.epoch),
        # The Python that has the tools.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    for script, *arguments in BUILDS:
        print(f"packaging/{script} {' '.join(arguments)}", flush=True)
        _run(
            [str(source / "packaging" / script), str(built), *arguments], environment, surroundings
        )
    return built


def _extract(root: Path, source: Path, surroundings: Surroundings) -> None:
    """Copy what the commit has, and nothing that lies about."""
    archive = source.with_suffix(".tar")
    _run(["git", "-C", str(root), "archive", "-o", str(archive), "HEAD"], None, surroundings)
    extract = ["tar", *surroundings.extract, "--no-same-permissions", "-C", str(source)]
    _run([*extract, "-f", str(archive)], None, surroundings)


def _run(command: List[str], environment: Optional[Dict[str, str]], where: Surroundings) -> None:
    done = subprocess.run(
        command,
        env=environment,
        umask=where.umask,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        print(*done.stdout.splitlines()[-LAST_LINES:], sep="\n", file=sys.stderr)
        raise Failed(
            f"{Path(command[0]).name} failed with exit code {done.returncode}; mend what its "
            "last lines above say, and start again"
        )
