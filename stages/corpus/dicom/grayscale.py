"""From stored values to 8-bit grey, in the order of the standard (PS3.3 C.11, PS3.4 N.2).

Modality LUT or rescale; then VOI LUT or window; then inversion, for MONOCHROME1 or PresentationLUTShape INVERSE. Where a file has
several windows or VOI LUTs the first counts; a VOI LUT goes before a window. Without either, pictures of at most 8 bits keep their
values, deeper ones are scaled from their darkest to their brightest pixel, as other kinds of files are; padding counts for neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from stages.corpus.dicom.headers.elements import Elements
from stages.corpus.quarantine.image_errors import ImageError

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Floats = NDArray[np.float64]

_FUNCTIONS: Final[tuple[Function, ...]] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_BLOCK: Final = 2**20
"""Pixels that are computed at a time: steps in floating point take many times the memory of the picture."""
_TABLE: Final = 2**16
_FEW_BITS: Final = 8


class Depth(NamedTuple):
    """Of a stored value: bits, and whether it is signed."""

    stored: int
    signed: bool


@dataclass(frozen=True)
class Window:
    """A window of values that are shown (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    function: Function = "LINEAR"

    def __post_init__(self) -> None:
        """ImageError for a width that the function is not defined for."""
        if not (self.width >= 1 if self.function == "LINEAR" else self.width > 0):
            raise ImageError("WindowWidth is too small for its VOILUTFunction")

    def __call__(self, values: Floats) -> Floats:
        """Values after the modality step -> 0 (black) to 1."""
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -700, 700)))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return (values > self.center - 0.5).astype(np.float64)
        return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True, eq=False)
class Lut:
    """A look-up table (PS3.3 C.11.1.1, C.11.2.1.1): values below `first` take the first entry, those above the last the last."""

    first: int
    bits: int
    """Of an entry."""
    entries: NDArray[np.uint16]

    def __call__(self, values: Floats) -> Floats:
        """Values of any size -> entries, 0 to 2**bits - 1."""
        at = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[at.astype(np.intp)].astype(np.float64)


@dataclass(frozen=True)
class Rescale:
    """Stored value * slope + intercept (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: Floats) -> Floats:
        """Stored values -> values of the modality, Hounsfield units for CT; infinite where they are too large for a float."""
        with np.errstate(over="ignore"):
            return values * self.slope + self.intercept


@dataclass(frozen=True)
class Grey:
    """The steps for a frame. Without a `voi` step the full range is shown, None as long as it takes the pixels to tell."""

    modality: Rescale | Lut
    voi: Window | Lut | None
    inverted: bool
    padding: tuple[int, int] | None = None
    """Stored values, from and to, that stand for no picture."""
    full_range: tuple[float, float] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether this can be applied; otherwise the pixels of all frames decide the range."""
        return self.voi is not None or self.full_range is not None

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """Stored values (rows, columns) of any type -> grey. ImageError for values that are not finite."""
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise ImageError("pixels that are not finite numbers")
        flat = stored.reshape(-1)
        if stored.dtype.kind in "iu" and (lowest := int(flat.min())) + _TABLE > int(flat.max()):
            # few values, many pixels: compute each value once
            table = self._levels(np.arange(lowest, int(flat.max()) + 1, dtype=np.float64))
            return np.concatenate([table[part.astype(np.int64) - lowest] for part in _blocks(flat)]).reshape(stored.shape)
        return np.concatenate([self._levels(part.astype(np.float64)) for part in _blocks(flat)]).reshape(stored.shape)

    def values(self, stored: NDArray[Any]) -> tuple[float, float] | None:
        """The lowest and the highest value after the modality step, padding aside; None if all is padding."""
        if self.padding is not None:
            stored = stored[(stored < self.padding[0]) | (stored > self.padding[1])]
        if not stored.size:
            return None
        if isinstance(self.modality, Lut):
            found = [self.modality(part.astype(np.float64)) for part in _blocks(np.unique(stored))]
            return float(min(part.min() for part in found)), float(max(part.max() for part in found))
        # a slope below zero turns them round
        ends = sorted(self.modality(np.array([stored.min(), stored.max()], dtype=np.float64)).tolist())
        return ends[0], ends[1]

    def _levels(self, values: Floats) -> NDArray[np.uint8]:
        with np.errstate(over="ignore", invalid="ignore"):
            shown = self._shown(self.modality(values))
        if not np.isfinite(shown).all():
            raise ImageError("pixels that are not finite numbers after the rescale")
        return np.rint(255 * (1 - shown if self.inverted else shown)).astype(np.uint8)

    def _shown(self, values: Floats) -> Floats:
        if isinstance(self.voi, Window):
            return self.voi(values)
        if self.voi is not None:
            return np.clip(self.voi(values) / (2**self.voi.bits - 1), 0, 1)
        low, high = self.full_range or (0.0, 0.0)
        return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def read_greys(elements: Elements, tags: Depth, frames: int, inverted: bool, ct_window: Sequence[float] | None) -> tuple[Grey, ...]:
    """The steps of a grey file: one for all frames, or one for each where functional groups say so.

    ct_window: (centre, width) in HU that goes before the file's own windows and VOI LUTs, where values are in HU; None: the file's
    own. Raises ImageError.
    """
    inverted = inverted or elements.code("PresentationLUTShape", ("IDENTITY", "INVERSE")) == "INVERSE"
    padding = _padding(elements, tags.signed)
    shared = elements.items("SharedFunctionalGroupsSequence")[:1]
    each = elements.items("PerFrameFunctionalGroupsSequence")
    if each and len(each) != frames:
        raise ImageError("there are not as many functional groups as frames: a wrong header")

    def steps(groups: list[Elements]) -> Grey:
        transformation = _macro(groups, "PixelValueTransformationSequence") or elements
        step = _modality_step(transformation, tags.signed)
        in_hu = step is not None and (not transformation.has("RescaleType") or transformation.code("RescaleType", ("HU",), "LO") == "HU")
        step = step or Rescale()
        if ct_window is not None and in_hu:
            return Grey(step, Window(ct_window[0], ct_window[1]), inverted, padding)
        voi = _voi_step(_macro(groups, "FrameVOILUTSequence") or elements, signed=_signed_after(step, tags.signed))
        return Grey(step, voi, inverted, padding, _known_range(step, tags))

    return tuple(steps([group, *shared]) for group in each) if each else (steps(shared),)


def with_range(greys: tuple[Grey, ...], ranges: Iterable[tuple[float, float] | None]) -> tuple[Grey, ...]:
    """The same steps, those without a range with the one that all frames together have."""
    known = [found for found in ranges if found is not None] or [(0.0, 0.0)]
    full = (min(low for low, _ in known), max(high for _, high in known))
    return tuple(grey if grey.is_complete else replace(grey, full_range=full) for grey in greys)


def read_lut(elements: Elements, descriptor: str, data: str, *, signed: bool) -> Lut:
    """A look-up table of a data set; `signed`: of the first mapped value, where the file does not say it. Raises ImageError."""
    found = elements.words(descriptor, 3, signed=signed)
    bulk = elements.bulk(data, ("US", "SS", "OW", "OB"))
    if found is None or bulk is None:
        raise ImageError(f"{descriptor} or {data} is missing")
    count, first, bits = (found[0] & 0xFFFF) or 2**16, found[1], found[2]
    if not 1 <= bits <= 16:
        raise ImageError(f"{descriptor} has entries of an impossible size")
    if len(bulk[0]) == 2 * count:
        entries = np.frombuffer(bulk[0], "<u2" if elements.little_endian(data) else ">u2")
    elif bits <= 8 and len(bulk[0]) == count + count % 2:
        entries = np.frombuffer(bulk[0], np.uint8)[:count]
    else:
        raise ImageError(f"{data} has another length than {descriptor} says")
    return Lut(first, bits, entries.astype(np.uint16))


def _modality_step(elements: Elements, signed: bool) -> Rescale | Lut | None:
    for lut in elements.items("ModalityLUTSequence")[:1]:
        return read_lut(lut, "LUTDescriptor", "LUTData", signed=signed)
    slope, intercept = elements.decimals("RescaleSlope", 1), elements.decimals("RescaleIntercept", 1)
    if slope is None and intercept is None:
        return None
    if slope is not None and not slope[0]:
        raise ImageError("RescaleSlope is 0")
    return Rescale((slope or (1.0,))[0], (intercept or (0.0,))[0])


def _voi_step(elements: Elements, *, signed: bool) -> Window | Lut | None:
    for lut in elements.items("VOILUTSequence")[:1]:
        return read_lut(lut, "LUTDescriptor", "LUTData", signed=signed)
    center, width = elements.decimals("WindowCenter"), elements.decimals("WindowWidth")
    if center is None and width is None:
        return None
    if center is None or width is None:
        raise ImageError("WindowCenter and WindowWidth are not both there")
    function = elements.code("VOILUTFunction", _FUNCTIONS) if elements.has("VOILUTFunction") else "LINEAR"
    if function is None:
        raise ImageError(f"VOILUTFunction is none of {', '.join(_FUNCTIONS)}")
    return Window(center[0], width[0], cast(Function, function))


def _signed_after(step: Rescale | Lut, signed: bool) -> bool:
    """Whether values can be below zero after the modality step: the first value a VOI LUT maps is then written signed."""
    return isinstance(step, Rescale) and (signed or step.intercept < 0)


def _known_range(step: Rescale | Lut, depth: Depth) -> tuple[float, float] | None:
    """The full range after the modality step that pictures of few bits have; None where it takes the pixels to tell."""
    if isinstance(step, Lut):
        return (0.0, 2.0**step.bits - 1) if step.bits <= _FEW_BITS else None
    if depth.stored > _FEW_BITS:
        return None
    lowest = -(2 ** (depth.stored - 1)) if depth.signed else 0
    low, high = sorted(step(np.array([lowest, lowest + 2**depth.stored - 1], dtype=np.float64)).tolist())
    return low, high


def _padding(elements: Elements, signed: bool) -> tuple[int, int] | None:
    """Stored values that stand for no picture (PS3.3 C.7.5.1.1.2)."""
    one = elements.words("PixelPaddingValue", 1, signed=signed)
    if one is None:
        return None
    low, high = sorted((one[0], (elements.words("PixelPaddingRangeLimit", 1, signed=signed) or one)[0]))
    return low, high


def _macro(groups: list[Elements], keyword: str) -> Elements | None:
    """The item of a functional group, of the frame's own group if it is there, else of the shared one."""
    return next((item for group in groups for item in group.items(keyword)[:1]), None)


def _blocks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK))
