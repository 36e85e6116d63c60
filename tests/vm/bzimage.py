"""Uncompress a kernel image beforehand, so that it need not do so itself under emulation.

The place and the length of what is compressed stand in the image's header ("The Linux/x86 Boot
Protocol" in the kernel's documentation). QEMU boots what comes out, an ELF file, by its PVH entry.
"""

from __future__ import annotations

import lzma
import struct

SECTOR = 512
SETUP_SECTORS_AT = 0x1F1
PAYLOAD_OFFSET_AND_LENGTH_AT = 0x248
XZ_MAGIC = b"\xfd7zXZ\0"


def uncompressed(image: bytes) -> bytes:
    """Return the kernel in a bzImage, or the bzImage as it is if it is not compressed by xz.

    Of those in use, only xz takes long enough under emulation to matter.
    """
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET_AND_LENGTH_AT)
    start = (1 + image[SETUP_SECTORS_AT]) * SECTOR + offset
    payload = image[start : start + length]
    if not payload.startswith(XZ_MAGIC):
        return image
    # The payload ends in the length of the kernel, which is no part of the compressed stream.
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
