"""PALETTE COLOR: stored values as 8-bit RGB by three look-up tables (PS3.3 C.7.6.3.1.5, C.7.9.2).

Segmented tables are read too, but for indirect segments: these can name one another and so grow without end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.corpus.dicom.grayscale import Lut, read_lut
from stages.corpus.dicom.headers.elements import Elements
from stages.corpus.quarantine.image_errors import ImageError

_COLOURS: Final = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR = 0, 1
KEYWORDS: Final = tuple(
    keyword.format(colour)
    for colour in _COLOURS
    for keyword in ("{}PaletteColorLookupTableDescriptor", "{}PaletteColorLookupTableData", "Segmented{}PaletteColorLookupTableData")
)


@dataclass(frozen=True, eq=False)
class Palette:
    """A table for each of red, green and blue."""

    tables: tuple[Lut, Lut, Lut]

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """Stored values (rows, columns) -> (rows, columns, 3)."""
        return np.stack([_looked_up(table, stored) for table in self.tables], axis=-1)


def read_palette(elements: Elements, *, signed: bool) -> Palette:
    """The palette of a file; ImageError if it is not whole."""
    red, green, blue = (_table(elements, colour, signed) for colour in _COLOURS)
    return Palette((red, green, blue))


def _looked_up(table: Lut, stored: NDArray[Any]) -> NDArray[np.uint8]:
    colours = (table.entries >> max(table.bits - 8, 0)).astype(np.uint8)
    return colours[np.clip(stored.astype(np.int64) - table.first, 0, len(colours) - 1)]


def _table(elements: Elements, colour: str, signed: bool) -> Lut:
    descriptor, segmented = f"{colour}PaletteColorLookupTableDescriptor", f"Segmented{colour}PaletteColorLookupTableData"
    if not elements.has(segmented):
        return read_lut(elements, descriptor, f"{colour}PaletteColorLookupTableData", signed=signed)
    found, bulk = elements.words(descriptor, 3, signed=signed), elements.bulk(segmented, ("OW",))
    if found is None or bulk is None or found[2] not in (8, 16):
        raise ImageError(f"{descriptor} does not go with segmented data")
    kind = np.dtype(np.uint8) if found[2] == 8 else np.dtype("<u2" if elements.little_endian(segmented) else ">u2")
    if len(bulk[0]) % kind.itemsize:
        raise ImageError(f"{segmented} has the wrong length")
    entries = _expanded(np.frombuffer(bulk[0], kind).tolist(), (found[0] & 0xFFFF) or 2**16, segmented)
    return Lut(found[1], found[2], np.array(entries, dtype=np.uint16))


def _expanded(data: list[int], count: int, keyword: str) -> list[int]:
    """`count` entries out of segments: (0, n, n entries), or (1, n, the last of n entries in a line with the entry before)."""
    entries: list[int] = []
    at = 0
    while len(entries) < count:
        kind, length = data[at : at + 2] if at + 2 <= len(data) else (-1, 0)
        if kind == _DISCRETE and length and at + 2 + length <= len(data):
            entries += data[at + 2 : at + 2 + length]
            at += 2 + length
        elif kind == _LINEAR and length and entries and at + 3 <= len(data):
            entries += np.rint(np.linspace(entries[-1], data[at + 2], length + 1)[1:]).astype(int).tolist()
            at += 3
        else:
            raise ImageError(f"{keyword} has a segment that is damaged, or indirect")
    if len(entries) != count:
        raise ImageError(f"{keyword} has more entries than its descriptor says")
    return entries
