"""PALETTE COLOR: stored values to 8-bit RGB by three look-up tables (PS3.3 C.7.6.3.1.5, C.7.9.2).

Segmented tables are supported except for indirect segments, which can refer to one another and so
grow without bound. pydicom's `apply_color_lut` is not used: it expands any segments (246 bytes to
2.6 million entries), and wraps stored values above 255 if entries have 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.corpus.dicom.grayscale import Lut, read_descriptor, read_lut
from stages.corpus.dicom.headers.elements import Elements
from stages.corpus.quarantine.image_errors import ImageError

_COLOURS: Final = ("Red", "Green", "Blue")
_DISCRETE: Final = 0
_LINEAR: Final = 1
KEYWORDS: Final = (
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
)


@dataclass(frozen=True, eq=False)
class Palette:
    """Look-up tables for red, green and blue."""

    tables: tuple[Lut, Lut, Lut]

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """Stored values (rows, columns) -> (rows, columns, 3)."""
        return np.stack([_look_up(table, stored) for table in self.tables], axis=-1)


def read_palette(elements: Elements, *, signed: bool) -> Palette:
    """Palette of a file; ImageError if it is incomplete."""
    red, green, blue = (_table(elements, colour, signed) for colour in _COLOURS)
    return Palette((red, green, blue))


def _look_up(table: Lut, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """8-bit entries of stored values; those beyond the table take its first or last entry."""
    colours = (table.entries >> max(table.bits - 8, 0)).astype(np.uint8)
    return colours[np.clip(stored.astype(np.int64) - table.first, 0, len(colours) - 1)]


def _table(elements: Elements, colour: str, signed: bool) -> Lut:
    descriptor = f"{colour}PaletteColorLookupTableDescriptor"
    segmented = f"Segmented{colour}PaletteColorLookupTableData"
    if not elements.has(segmented):
        return read_lut(elements, descriptor, f"{colour}PaletteColorLookupTableData", signed=signed)
    table = read_descriptor(elements, descriptor, signed=signed)
    data = elements.bulk(segmented, ("OW",))
    if table is None or data is None or table.bits not in (8, 16):
        raise ImageError(f"{descriptor} does not match segmented data")
    word = "<u2" if elements.little_endian(segmented) else ">u2"
    dtype = np.dtype(np.uint8 if table.bits == 8 else word)
    if len(data.content) % dtype.itemsize:
        raise ImageError(f"{segmented} has the wrong length")
    segments = np.frombuffer(data.content, dtype).tolist()
    entries = _expand_segments(segments, table.length, segmented)
    return Lut(table.first, table.bits, np.array(entries, dtype=np.uint16))


def _expand_segments(data: list[int], count: int, keyword: str) -> list[int]:
    """`count` entries of a segmented table (PS3.3 C.7.9.2); ImageError for any other number.

    A segment is (0, n, n entries), or (1, n, y): n entries in a line from the entry before to y.
    """
    entries: list[int] = []
    at = 0
    while len(entries) < count:
        kind, length = data[at : at + 2] if at + 2 <= len(data) else (-1, 0)
        if kind == _DISCRETE and length and at + 2 + length <= len(data):
            entries += data[at + 2 : at + 2 + length]
            at += 2 + length
        elif kind == _LINEAR and length and entries and at + 3 <= len(data):
            line = np.linspace(entries[-1], data[at + 2], length + 1)[1:]
            entries += np.rint(line).astype(int).tolist()
            at += 3
        else:
            raise ImageError(f"{keyword} has a segment that is damaged, or indirect")
    if len(entries) != count:
        raise ImageError(f"{keyword} has more entries than its descriptor says")
    return entries
