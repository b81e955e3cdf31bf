"""Local header of a zip member: where the content begins, for reads by position."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import Final

_LOCAL: Final = struct.Struct("<4s22xHH")
"""Magic, and at the end the lengths of the name and of the extra field, which follow it."""
HEADER_SIZE: Final = _LOCAL.size
"""Bytes of a local header before the name."""


def find_content(descriptor: int, position: int, name: bytes | None = None) -> int:
    """Position of a member's content, from its local header at `position` of an open zip.

    Positional reads only: threads may share the descriptor. Raises zipfile.BadZipFile if the header
    is truncated, invalid, or that of another member than `name`.
    """
    header = os.pread(descriptor, HEADER_SIZE + len(name or b""), position)
    if len(header) < HEADER_SIZE:
        raise zipfile.BadZipFile("its header is truncated")
    magic, name_size, extra_size = _LOCAL.unpack_from(header)
    is_named = name is None or (name_size == len(name) and header[HEADER_SIZE:] == name)
    if magic != b"PK\x03\x04" or not is_named:
        raise zipfile.BadZipFile("its local header does not match the central directory")
    return position + HEADER_SIZE + name_size + extra_size
