"""Read DICOM files: frames as 8-bit grey or RGB, and the few tags that identify nobody.

docs/ingest-dicom.md has what is read and refused, the window that grey is shown through, and what
is passed on. A patient may be named in any element, in pydicom's warnings and in its exceptions:
stages/corpus/dicom/headers/elements.py keeps all of them from leaving this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom
from stages.corpus.dicom.grayscale import Grey, Window, with_range
from stages.corpus.dicom.header import SeriesPosition, Tags, read_header
from stages.corpus.dicom.headers.preamble import is_dicom
from stages.corpus.dicom.pixels import Frames
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

__all__ = ["DicomImage", "Levels", "Tags", "read_dicom", "representative"]

Levels = NDArray[np.uint8]
"""(rows, columns) grey or (rows, columns, 3) RGB."""


@dataclass(frozen=True)
class DicomImage:
    """Frames of a file or a series, in order."""

    frames: Sequence[Levels]
    """Decoded on access, which may raise ImageError."""
    representative: int
    """Index of the frame that questions are about."""
    tags: Tags
    position: SeriesPosition
    """For sorting a series; not to be passed on."""
    affine: NDArray[np.float64] | None = field(default=None, repr=False)
    """(column, row, frame) to millimetres, RAS+; None if it is unknown, or was not asked for."""


class _Renderer:
    """Renders the frames of a file in 8 bits, one at a time; ImageError for damaged pixels."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def frame(self, index: int) -> Levels:
        stored = self._frames.stored(index)
        header = self._frames.header
        if header.palette is not None:
            return header.palette(stored)
        if header.samples == 3:
            return _to_8_bits(stored, header.tags.bits_stored)
        return _of_frame(self._greys, index)(stored)

    @cached_property
    def _greys(self) -> tuple[Grey, ...]:
        """Grayscale steps; without a window, all frames are decoded once to find their range."""
        greys = self._frames.header.greys
        if all(grey.is_complete for grey in greys):
            return greys
        ranges = (
            _of_frame(greys, index).values(self._frames.stored(index))
            for index in range(len(self._frames))
        )
        return with_range(greys, ranges)


def read_dicom(
    content: bytes,
    settings: Dicom,
    max_pixels: int | None = None,
    window: Sequence[float] | None = None,
    *,
    in_series: bool = False,
) -> DicomImage:
    """Read a file of one or more frames.

    Args:
        content: The file.
        settings: Group dicom.
        max_pixels: Limit for a single frame, in addition to dicom.max_total_pixels.
        window: (centre, width) of modality values for grey, instead of the file's own and of
            dicom.ct_window, if the image has several frames.
        in_series: Whether it has some in other files.

    Raises ImageError; its message quotes no values but sizes and words of closed lists.
    """
    if not is_dicom(content):
        raise ImageError("not a DICOM file", Reason.IMAGE_FORMAT)
    header = read_header(content, settings, max_pixels)
    if window is not None and (in_series or header.tags.frames > 1):
        voi = Window(window[0], window[1])
        header = replace(header, greys=tuple(replace(grey, voi=voi) for grey in header.greys))
    frames = Frames(header)
    return DicomImage(
        frames=LazySequence(len(frames), _Renderer(frames).frame),
        representative=representative(header.tags.frames, settings),
        tags=header.tags,
        position=header.position,
    )


def representative(count: int, settings: Dicom) -> int:
    """Index of the frame, of `count`, that questions are about."""
    return count // 2 if settings.frame == "middle" else 0


def _of_frame(greys: tuple[Grey, ...], index: int) -> Grey:
    """Steps of a frame: there are either one for all frames, or one for each."""
    return greys[index if len(greys) > 1 else 0]


def _to_8_bits(colours: NDArray[Any], bits: int) -> Levels:
    """RGB of any unsigned depth as 8-bit RGB."""
    if colours.dtype.kind != "u":
        raise ImageError("colours with signed values")
    if bits == 8:
        return colours.astype(np.uint8)
    return np.rint(colours * (255 / (2**bits - 1))).astype(np.uint8)
