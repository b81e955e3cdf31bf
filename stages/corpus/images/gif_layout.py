"""Layout of a GIF file (GIF89a), read without decoding or allocating an image.

Pillow allocates what a frame covers as soon as it reaches the frame, whose place and size any file
may declare. It also ends without an error where a file is truncated between two frames.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

GIF_SIGNATURES: Final = (b"GIF87a", b"GIF89a")

_HEADER_BYTES: Final = 13
"""Signature and logical screen descriptor, whose flags are the third byte from its end."""
_FLAGS_AT: Final = 10
_HAS_TABLE: Final = 0x80
_TRAILER: Final = 0x3B
_EXTENSION: Final = 0x21
_FRAME: Final = 0x2C
_DESCRIPTOR_BYTES: Final = 10
"""Separator, left, top, width, height and flags of a frame."""


class GifLayout(NamedTuple):
    """Frames of a GIF file, and whether it ends as one does."""

    extents: tuple[tuple[int, int], ...]
    """Per frame, where it ends to the right and below, in pixels of the screen."""
    is_complete: bool
    """Whether all blocks of these frames are in the file, and after the last one the trailer."""


def read_gif_layout(content: bytes, max_frames: int) -> GifLayout:
    """Find the frames of a file that begins with one of GIF_SIGNATURES.

    A file with more than `max_frames` is read up to the first frame beyond them, and not complete.
    Bytes between the blocks are skipped, as Pillow skips them.
    """
    extents: list[tuple[int, int]] = []
    at = _HEADER_BYTES
    if len(content) >= at:
        at += _table_bytes(content[_FLAGS_AT])
    while at < len(content) and len(extents) <= max_frames:
        block = content[at]
        if block == _TRAILER:
            return GifLayout(tuple(extents), is_complete=True)
        if block == _FRAME:
            descriptor = content[at : at + _DESCRIPTOR_BYTES]
            if len(descriptor) < _DESCRIPTOR_BYTES:
                break
            left, top, width, height, flags = struct.unpack("<4HB", descriptor[1:])
            extents.append((left + width, top + height))
            # the byte after the table is the size of the first codes
            at = _after_data(content, at + _DESCRIPTOR_BYTES + _table_bytes(flags) + 1)
        elif block == _EXTENSION:
            at = _after_data(content, at + 2)
        else:
            at += 1
    return GifLayout(tuple(extents), is_complete=False)


def _table_bytes(flags: int) -> int:
    """Size of the colour table that flags announce."""
    return 3 << ((flags & 7) + 1) if flags & _HAS_TABLE else 0


def _after_data(content: bytes, at: int) -> int:
    """Position after a chain of sub-blocks, each a length and so many bytes, ended by length 0.

    Beyond the file if that ends before the chain does.
    """
    while at < len(content) and content[at]:
        at += content[at] + 1
    return at + 1
