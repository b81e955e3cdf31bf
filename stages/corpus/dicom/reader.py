"""DICOM files: their frames as 8-bit grey or RGB, and a few facts that name nobody. Nothing else
leaves this reader.

What is read, the window that grey is shown through, what is passed on and what is refused:
docs/ingest-dicom.md. A patient may be named in any element, in pydicom's warnings and in its
exceptions: see stages/corpus/dicom/headers/elements.py for how none gets out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom
from stages.corpus.dicom.grayscale import Grey, with_range
from stages.corpus.dicom.header import SeriesPosition, Tags, read_header
from stages.corpus.dicom.headers.elements import is_dicom
from stages.corpus.dicom.pixels import Frames
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

__all__ = ["DicomImage", "Levels", "Tags", "is_dicom", "read_dicom", "representative"]

Levels = NDArray[np.uint8]
"""(rows, columns) grey or (rows, columns, 3) RGB."""


class _Renderer:
    """Shows the frames of a file in 8 bits, one at a time. ImageError if the pixels of one are
    damaged.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def frame(self, at: int) -> Levels:
        return self._shown(self._frames.stored(at), at)

    def _shown(self, stored: NDArray[Any], at: int) -> Levels:
        header = self._frames.header
        if header.palette is not None:
            return header.palette(stored)
        if header.samples == 3:
            return _eight_bits(stored, header.tags.bits_stored)
        return self._greys[at if len(self._greys) > 1 else 0](stored)

    @cached_property
    def _greys(self) -> tuple[Grey, ...]:
        """The grey steps; where there is no window, all frames are decoded once to find their
        range.
        """
        greys = self._frames.header.greys
        if all(grey.is_complete for grey in greys):
            return greys
        found = (
            greys[at if len(greys) > 1 else 0].values(self._frames.stored(at))
            for at in range(len(self._frames))
        )
        return with_range(greys, found)


@dataclass(frozen=True)
class DicomImage:
    """A file or a series: its frames in order, the index of the one that a question is about, and
    what is known of them.
    """

    frames: Sequence[Levels]
    representative: int
    tags: Tags
    place: SeriesPosition
    """Where a file stands in its series; not to be passed on."""


def read_dicom(content: bytes, settings: Dicom, max_pixels: int | None = None) -> DicomImage:
    """Read a file of one frame or several. Frames are decoded when they are asked for, and may
    raise ImageError then.

    max_pixels: of a frame, if it has a limit of its own beside dicom.max_total_pixels. Raises
    ImageError with the reason, which quotes no value but sizes and words of closed lists.
    """
    if not is_dicom(content):
        raise ImageError("not a DICOM file", Reason.IMAGE_FORMAT)
    header = read_header(content, settings, max_pixels)
    frames = Frames(header)
    shown = LazySequence(len(frames), _Renderer(frames).frame)
    return DicomImage(
        shown, representative(header.tags.frames, settings), header.tags, header.place
    )


def representative(count: int, settings: Dicom) -> int:
    """Of `count` frames the index of the one that a question is about."""
    return count // 2 if settings.frame == "middle" else 0


def _eight_bits(colours: NDArray[Any], bits: int) -> Levels:
    """RGB of any unsigned depth as 8-bit RGB."""
    if colours.dtype.kind != "u":
        raise ImageError("colours with signed values")
    if bits == 8:
        return colours.astype(np.uint8)
    return np.rint(colours * (255 / (2**bits - 1))).astype(np.uint8)
