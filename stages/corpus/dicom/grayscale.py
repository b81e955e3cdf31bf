"""Grayscale pipeline from stored values to 8 bits, in the standard's order (PS3.3 C.11, PS3.4 N.2).

Modality LUT or rescale; then VOI LUT or window; then inversion, for MONOCHROME1 or
PresentationLUTShape INVERSE. The first of several windows or VOI LUTs is used, and a VOI LUT rather
than a window. Without either, images of at most 8 bits keep their values and deeper ones are scaled
from their darkest to their brightest pixel, as other file formats are; padding is ignored for both.

Rescale and windows are pydicom's functions on a data set of checked numbers. Look-up tables are
not: pydicom 3.0 wraps the index in the type of the entries (with 8-bit entries, index 256 becomes
0) and refuses entries of 1 to 7 or 9 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from stages.corpus.dicom.headers.elements import Elements
from stages.corpus.quarantine.image_errors import ImageError

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Floats = NDArray[np.float64]
Range = tuple[float, float]
"""Lowest and highest modality value."""

_FUNCTIONS: Final[tuple[Function, ...]] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_BLOCK: Final = 2**20
"""Pixels per step: float64 takes four to eight times the memory of the stored values."""
_MAX_TABLE: Final = 2**16
"""Entries of a table from stored values to gray, which then replaces arithmetic per pixel."""
_FEW_BITS: Final = 8
"""Stored bits up to which an image without a window keeps its values."""


class Depth(NamedTuple):
    """Bits of a stored value, and whether it is signed."""

    stored: int
    signed: bool


@dataclass(frozen=True)
class Window:
    """VOI window (PS3.3 C.11.2.1.2, C.11.2.1.3); center and width are modality values."""

    center: float
    width: float
    function: Function = "LINEAR"

    def __post_init__(self) -> None:
        """ImageError for a width that the function is not defined for."""
        valid = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        if not valid:
            raise ImageError("WindowWidth is too small for its VOILUTFunction")

    def __call__(self, values: Floats) -> Floats:
        """Values after the modality step -> 0 (black) to 1."""
        elements = _data_set(
            PhotometricInterpretation="MONOCHROME2",
            # pydicom scales to the range of the stored bits: unsigned, one bit is 0 to 1
            PixelRepresentation=0,
            BitsStored=1,
            WindowCenter=float(self.center),
            WindowWidth=float(self.width),
            VOILUTFunction=self.function,
        )
        with np.errstate(over="ignore"):  # SIGMOID far below the center: exp is inf, the result 0
            return apply_windowing(values, elements)


class LutDescriptor(NamedTuple):
    """Descriptor of a look-up table."""

    length: int
    """Number of entries."""
    first: int
    """Input value of the first entry."""
    bits: int
    """Bits per entry."""


@dataclass(frozen=True, eq=False)
class Lut:
    """Look-up table (PS3.3 C.11.1.1, C.11.2.1.1).

    Values below `first` map to the first entry, values beyond the table to the last.
    """

    first: int
    bits: int
    """Bits per entry."""
    entries: NDArray[np.uint16]

    def __call__(self, values: Floats) -> Floats:
        """Values of any size -> entries, 0 to 2**bits - 1."""
        # clip as floats: an infinite value has no integer
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.intp)].astype(np.float64)


@dataclass(frozen=True)
class Rescale:
    """Linear modality transform: stored value * slope + intercept (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: Floats) -> Floats:
        """Stored values -> modality values (Hounsfield units for CT), infinite on overflow."""
        elements = _data_set(RescaleSlope=float(self.slope), RescaleIntercept=float(self.intercept))
        with np.errstate(over="ignore"):
            return apply_modality_lut(values, elements)


@dataclass(frozen=True)
class Grey:
    """Grayscale steps of a frame.

    Without a `voi` step `full_range` is mapped to black to white; None until the pixels of all
    frames have been scanned for it.
    """

    modality: Rescale | Lut
    voi: Window | Lut | None
    inverted: bool
    padding: tuple[int, int] | None = None
    """Lowest and highest stored value that mark pixels outside the image."""
    full_range: Range | None = None

    @property
    def is_complete(self) -> bool:
        """Whether this can be applied without `with_range`."""
        return self.voi is not None or self.full_range is not None

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """Stored values (rows, columns) of any type -> 8-bit gray. ImageError if not finite."""
        flat = stored.reshape(-1)
        bounds = _table_bounds(flat)
        if bounds is not None:
            first, end = bounds
            table = _table(self, first, end)
            levels = [table.take(part.astype(np.intp) - first) for part in _blocks(flat)]
        elif flat.dtype.kind == "f" and not np.isfinite(flat).all():
            raise ImageError("pixels that are not finite numbers")
        else:
            levels = [self.levels(part.astype(np.float64)) for part in _blocks(flat)]
        return np.concatenate(levels).reshape(stored.shape)

    def levels(self, values: Floats) -> NDArray[np.uint8]:
        """Finite stored values, as floats -> 8-bit gray."""
        fractions = self._fractions(self.modality(values))
        return np.rint(255 * (1 - fractions if self.inverted else fractions)).astype(np.uint8)

    def values(self, stored: NDArray[Any]) -> Range | None:
        """Lowest and highest modality value without padding; None if all is padding."""
        if self.padding is not None:
            stored = stored[(stored < self.padding[0]) | (stored > self.padding[1])]
        if not stored.size:
            return None
        if isinstance(self.modality, Lut):
            # a table need not be monotonic: every stored value counts, not only the ends
            mapped = [self.modality(part.astype(np.float64)) for part in _blocks(np.unique(stored))]
            lowest = min(part.min() for part in mapped)
            highest = max(part.max() for part in mapped)
            return float(lowest), float(highest)
        ends = self.modality(np.array([stored.min(), stored.max()], dtype=np.float64))
        return float(ends.min()), float(ends.max())  # a negative slope swaps them

    def _fractions(self, values: Floats) -> Floats:
        """Values after the modality step -> 0 (black) to 1."""
        if isinstance(self.voi, Window):
            return self.voi(values)
        if self.voi is not None:
            return np.clip(self.voi(values) / (2**self.voi.bits - 1), 0, 1)
        low, high = self.full_range or (0.0, 0.0)
        if not math.isfinite(high - low):
            raise ImageError("pixels that are not finite numbers after the rescale")
        if high <= low:
            return np.zeros_like(values)
        with np.errstate(over="ignore"):  # padding may lie far out of the range
            return np.clip((values - low) / (high - low), 0, 1)


@lru_cache(maxsize=16)
def _table(grey: Grey, first: int, end: int) -> NDArray[np.uint8]:
    """Gray of the integers from `first` to `end` - 1, computed once for all frames of a series."""
    table = grey.levels(np.arange(first, end, dtype=np.float64))
    table.flags.writeable = False
    return table


def _table_bounds(flat: NDArray[Any]) -> tuple[int, int] | None:
    """The range of a table for these stored values; None if they are floats, or too far from 0.

    Rounded outwards to powers of two, so that the frames of a series share one table.
    """
    if flat.dtype.kind not in "iu":
        return None
    lowest = int(flat.min())
    highest = int(flat.max())
    end = 2 ** max(highest, ~lowest).bit_length()  # ~: -128 needs no more bits than 127
    first = -end if lowest < 0 else 0
    return (first, end) if end - first <= _MAX_TABLE else None


def read_greys(
    elements: Elements,
    depth: Depth,
    frames: int,
    inverted: bool,
    ct_window: Sequence[float] | None,
) -> tuple[Grey, ...]:
    """Grayscale steps of a file: one for all frames, or one per frame from functional groups.

    ct_window: (center, width) in HU that replaces the file's own windows and VOI LUTs where values
    are in HU; None keeps the file's own. Raises ImageError.
    """
    shape = elements.code("PresentationLUTShape", ("IDENTITY", "INVERSE"))
    inverted = inverted or shape == "INVERSE"
    padding = _padding(elements, depth.signed)
    shared = elements.items("SharedFunctionalGroupsSequence")[:1]
    each = elements.items("PerFrameFunctionalGroupsSequence")
    if each and len(each) != frames:
        raise ImageError(f"{len(each)} functional groups for {frames} frames: a wrong header")

    def steps(groups: list[Elements]) -> Grey:
        transformation = macro_item(groups, "PixelValueTransformationSequence") or elements
        step = _modality_step(transformation, depth.signed)
        unit: str | None = "HU"  # of CT, where the file does not name another
        if transformation.has("RescaleType"):
            unit = transformation.code("RescaleType", ("HU",), "LO")
        in_hu = step is not None and unit == "HU"
        step = step or Rescale()
        if ct_window is not None and in_hu:
            return Grey(step, Window(ct_window[0], ct_window[1]), inverted, padding)
        voi_elements = macro_item(groups, "FrameVOILUTSequence") or elements
        voi = _voi_step(voi_elements, signed=_signed_after(step, depth.signed))
        return Grey(step, voi, inverted, padding, _known_range(step, depth))

    # a frame's own functional group takes precedence over the shared one (PS3.3 C.7.6.16)
    return tuple(steps([group, *shared]) for group in each) if each else (steps(shared),)


def with_range(greys: tuple[Grey, ...], ranges: Iterable[Range | None]) -> tuple[Grey, ...]:
    """The same steps; incomplete ones get the range of all frames together."""
    known = [each for each in ranges if each is not None] or [(0.0, 0.0)]
    full = (min(low for low, _ in known), max(high for _, high in known))
    return tuple(grey if grey.is_complete else replace(grey, full_range=full) for grey in greys)


def read_descriptor(elements: Elements, keyword: str, *, signed: bool) -> LutDescriptor | None:
    """Descriptor of a look-up table (PS3.3 C.11.1.1.1); None if it is missing."""
    words = elements.words(keyword, 3, signed=signed)
    if words is None:
        return None
    count, first, bits = words
    # the count is unsigned whatever `signed` says, and 0 stands for 65536, which fits no word
    return LutDescriptor((count & 0xFFFF) or 2**16, first, bits)


def read_lut(elements: Elements, descriptor: str, data: str, *, signed: bool) -> Lut:
    """Look-up table of a data set. Raises ImageError.

    signed: signedness of the first mapped value if its VR is unknown.
    """
    table = read_descriptor(elements, descriptor, signed=signed)
    bulk = elements.bulk(data, ("US", "SS", "OW", "OB"))
    if table is None or bulk is None:
        raise ImageError(f"{descriptor} or {data} is missing")
    if not 1 <= table.bits <= 16:
        raise ImageError(f"{descriptor} has entries of an impossible size")
    if len(bulk.content) == 2 * table.length:
        entries = np.frombuffer(bulk.content, "<u2" if elements.little_endian(data) else ">u2")
    elif table.bits <= 8 and len(bulk.content) == table.length + table.length % 2:
        # entries of one byte each, padded to an even length
        entries = np.frombuffer(bulk.content, np.uint8)[: table.length]
    else:
        raise ImageError(f"{data} has another length than {descriptor} says")
    return Lut(table.first, table.bits, entries.astype(np.uint16))


def _lut_item(elements: Elements, keyword: str) -> Elements | None:
    """The LUT of a sequence; None if it or its item is empty, as some devices write it."""
    item = elements.first_item(keyword)
    return item if item and (item.has("LUTDescriptor") or item.has("LUTData")) else None


def _modality_step(elements: Elements, signed: bool) -> Rescale | Lut | None:
    if lut := _lut_item(elements, "ModalityLUTSequence"):
        return read_lut(lut, "LUTDescriptor", "LUTData", signed=signed)
    slope = elements.decimals("RescaleSlope", 1)
    intercept = elements.decimals("RescaleIntercept", 1)
    if slope is None and intercept is None:
        return None
    if slope is not None and not slope[0]:
        raise ImageError("RescaleSlope is 0")
    return Rescale((slope or (1.0,))[0], (intercept or (0.0,))[0])


def _voi_step(elements: Elements, *, signed: bool) -> Window | Lut | None:
    if lut := _lut_item(elements, "VOILUTSequence"):
        return read_lut(lut, "LUTDescriptor", "LUTData", signed=signed)
    center = elements.decimals("WindowCenter")
    width = elements.decimals("WindowWidth")
    if center is None and width is None:
        return None
    if center is None or width is None:
        raise ImageError("WindowCenter or WindowWidth is missing")
    function: str | None = "LINEAR"
    if elements.has("VOILUTFunction"):
        function = elements.code("VOILUTFunction", _FUNCTIONS)
    if function is None:
        raise ImageError(f"VOILUTFunction is none of {', '.join(_FUNCTIONS)}")
    return Window(center[0], width[0], cast(Function, function))


def _signed_after(step: Rescale | Lut, signed: bool) -> bool:
    """Whether modality values can be negative; the first value a VOI LUT maps is then signed."""
    return isinstance(step, Rescale) and (signed or step.intercept < 0)


def _known_range(step: Rescale | Lut, depth: Depth) -> Range | None:
    """Full range of modality values for few bits; None if it depends on the pixels."""
    if isinstance(step, Lut):
        return (0.0, 2.0**step.bits - 1) if step.bits <= _FEW_BITS else None
    if depth.stored > _FEW_BITS:
        return None
    lowest = -(2 ** (depth.stored - 1)) if depth.signed else 0
    ends = np.array([lowest, lowest + 2**depth.stored - 1], dtype=np.float64)
    low, high = sorted(step(ends).tolist())
    return low, high


def _padding(elements: Elements, signed: bool) -> tuple[int, int] | None:
    """Range of stored values that mark padding (PS3.3 C.7.5.1.1.2)."""
    value = elements.words("PixelPaddingValue", 1, signed=signed)
    if value is None:
        return None
    limit = elements.words("PixelPaddingRangeLimit", 1, signed=signed) or value
    low, high = sorted((value[0], limit[0]))
    return low, high


def macro_item(groups: list[Elements], keyword: str) -> Elements | None:
    """Item of a functional group macro: the frame's own if it has one, else the shared one."""
    for group in groups:
        items = group.items(keyword)
        if items:
            return items[0]
    return None


def _data_set(**elements: float | str) -> Dataset:
    """A data set of these values alone, for pydicom's functions: none of the file's own elements.

    Floats are FD rather than DS: DS is limited to 16 characters.
    """
    data_set = Dataset()
    for keyword, value in elements.items():
        representation = "FD" if isinstance(value, float) else dictionary_VR(keyword)
        data_set.add_new(keyword, representation, value)
    return data_set


def _blocks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK))
