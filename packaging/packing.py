"""Packs archives whose bytes depend only on the files, not on who packs them, when and where.

    python3 packaging/packing.py zipapp FOLDER TARGET    the program of a folder, as one file
    python3 packaging/packing.py sdist ARCHIVE FOLDER    a source distribution, packed again

All has the time of SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import gzip
import os
import sys
import tarfile
import time
import zipfile
from pathlib import Path

# A ZIP archive cannot hold an earlier time.
OLDEST = (1980, 1, 1, 0, 0, 0)


def pack_zipapp(tree: Path, target: Path, epoch: int) -> None:
    """Put the files of a folder into an archive that can be run as a command."""
    date = max(time.gmtime(epoch)[:6], OLDEST)
    with target.open("wb") as file:
        # Without -I, because env(1) would take it for a part of the name.
        file.write(b"#!/usr/bin/env python3\n")
        # Not compressed: then the bytes do not depend on zlib. An image is compressed whole.
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(path for path in tree.rglob("*") if path.is_file()):
                member = zipfile.ZipInfo(str(path.relative_to(tree)), date)
                member.external_attr = 0o100644 << 16
                archive.writestr(member, path.read_bytes())
    target.chmod(0o755)


def pack_sdist_again(archive: Path, folder: Path, epoch: int) -> None:
    """Copy a .tar.gz into a folder, without the traces of this machine and moment."""
    # Not by tarfile's own compression, because that writes the time of the clock into the archive.
    with (
        tarfile.open(archive) as old,
        (folder / archive.name).open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old, key=lambda member: member.name):
            member.mtime = epoch
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)


if __name__ == "__main__":
    pack = {"zipapp": pack_zipapp, "sdist": pack_sdist_again}[sys.argv[1]]
    pack(Path(sys.argv[2]), Path(sys.argv[3]), int(os.environ["SOURCE_DATE_EPOCH"]))
