"""Recognise NIfTI files by their first bytes, without nibabel, which few corpora need."""

from __future__ import annotations

import zlib
from typing import Final

GZIP: Final = b"\x1f\x8b"
_GZIP_WRAPPER: Final = zlib.MAX_WBITS | 16
_PEEKED: Final = 2**16
"""Packed bytes in which the beginning of the NIfTI header is looked for."""

HEADER_BYTES: Final = {1: 348, 2: 540}
"""Version of NIfTI -> size of its header, which is also its first number (sizeof_hdr)."""
_MAGIC: Final = {
    b"n+1\0": (1, True),
    b"ni1\0": (1, False),
    b"n+2\0\r\n\x1a\n": (2, True),
    b"ni2\0\r\n\x1a\n": (2, False),
}
"""Magic string -> version, and whether the voxels are in the same file."""
_MAGIC_AT: Final = {1: 344, 2: 4}


def is_nifti(content: bytes) -> bool:
    """Whether a file, packed by gzip or not, is NIfTI, or the header file of a pair."""
    return nifti_version(first_bytes(content)) is not None


def nifti_version(header: bytes) -> tuple[int, bool] | None:
    """(version, whether it is a single file) of unpacked bytes; None if they are not NIfTI."""
    for magic, (version, single) in _MAGIC.items():
        size = HEADER_BYTES[version]
        sizes = (size.to_bytes(4, "little"), size.to_bytes(4, "big"))
        if header[:4] in sizes and header.startswith(magic, _MAGIC_AT[version]):
            return version, single
    return None


def first_bytes(content: bytes) -> bytes:
    """The beginning of a file, unpacked; b"" if it is packed and damaged there."""
    length = max(HEADER_BYTES.values())
    if not content.startswith(GZIP):
        return content[:length]
    try:
        return zlib.decompressobj(_GZIP_WRAPPER).decompress(content[:_PEEKED], length)
    except zlib.error:
        return b""
