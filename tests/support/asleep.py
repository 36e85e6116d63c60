"""A guest that exists but does not answer, as before its boot: vhost without a guest behind it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct
import subprocess
from pathlib import Path
from typing import IO, Iterator

import pytest

# CIDs for guests that never boot; another test may have some of them at the same time.
ASLEEP = range(4243, 4343)
VHOST_SET_OWNER, VHOST_VSOCK_SET_GUEST_CID = 0xAF01, 0x4008AF60


@contextlib.contextmanager
def guest_asleep() -> Iterator[int]:
    """The CID of such a guest, while it is there."""
    subprocess.run(["modprobe", "vhost_vsock"], check=False)
    if not Path("/dev/vhost-vsock").exists():
        pytest.skip("this kernel has no vhost_vsock")
    with open("/dev/vhost-vsock", "r+b", buffering=0) as device:
        fcntl.ioctl(device, VHOST_SET_OWNER)
        yield next(cid for cid in ASLEEP if _takes(device, cid))


def _takes(device: IO[bytes], cid: int) -> bool:
    try:
        fcntl.ioctl(device, VHOST_VSOCK_SET_GUEST_CID, struct.pack("Q", cid))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
