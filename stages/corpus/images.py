"""Medical pictures as they come, decoded to the square RGB pictures a policy sees.

8-bit pictures keep their values. 16-bit, 32-bit and float grey is scaled linearly from its own darkest and brightest
pixel to 0..255: such files use any part of their range, and nothing in them says which. What is see-through shows black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.corpus.dicom import Levels, Tags, is_dicom
from stages.corpus.dicom_series import read_series
from stages.corpus.image_errors import ImageError
from stages.params import Dicom

__all__ = ["FORMATS", "Decoded", "ImageError", "decode", "decode_files"]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
"""What is read at all: Pillow knows more, some through external programs."""

_DEEP_GREY = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Decoded:
    """A (size, size) RGB picture, and the file's own width and height, as seen (upright), and Pillow mode."""

    image: Image.Image
    width: int
    height: int
    mode: str
    """Of a DICOM file its photometric interpretation."""
    frames: Sequence[Image.Image] = ()
    """Of a DICOM series or multi-frame file all pictures in order, (size, size) RGB, `image` among them; decoded when asked for, so
    that asking may raise ImageError. Empty where there is one picture only."""
    tags: Tags | None = None
    """Of a DICOM file what is passed on of its header."""


class _Resized(Sequence[Image.Image]):
    """Frames as square RGB pictures, each resized when it is asked for."""

    def __init__(self, frames: Sequence[Levels], size: int, resample: Image.Resampling) -> None:
        self._frames, self._size, self._resample = frames, size, resample

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Image.fromarray(self._frames[index]).convert("RGB").resize((self._size, self._size), self._resample)

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[at] for at in range(len(self)))


def decode_files(contents: Sequence[bytes], size: int, resample: str, dicom: Dicom, *, folder: bool = False) -> Decoded:
    """Decode what a record names: one file of any kind, or a folder, which must hold the DICOM files of a series.

    Raises ImageError with the reason.
    """
    # first of all: a file can be DICOM and another kind at once, and what DICOM says of burned-in text must be heeded
    if not folder and not is_dicom(contents[0]):
        return decode(contents[0], size, resample)
    found = read_series(contents, dicom)
    pictures = _Resized(found.frames, size, Image.Resampling[resample.upper()])
    shown = pictures[found.representative]
    frames = pictures if len(pictures) > 1 else ()
    return Decoded(shown, found.tags.columns, found.tags.rows, found.tags.photometric, frames, found.tags)


def decode(content: bytes, size: int, resample: str) -> Decoded:
    """Decode a file's bytes, the first frame only, turn it as its EXIF says, and resize it to `size` pixels square.

    `resample` is the name of a Pillow filter ("bicubic"). Raises ImageError with the reason.
    """
    chosen = Image.Resampling[resample.upper()]
    if not content:
        raise ImageError("the file is empty")
    try:
        upright = _upright(content)
        image = _rgb(upright).resize((size, size), chosen)
    except UnidentifiedImageError:
        raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # all is in memory: whatever a decoder raises, and they raise all kinds, is the file's fault
        raise ImageError(f"truncated or damaged: {error or type(error).__name__}") from error
    return Decoded(image, upright.width, upright.height, upright.mode)


def _upright(content: bytes) -> Image.Image:
    opened = Image.open(BytesIO(content), formats=FORMATS)
    # between once and twice the limit Pillow itself only warns
    if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
        raise ImageError(f"too many pixels: {opened.width} x {opened.height}, the limit is {Image.MAX_IMAGE_PIXELS}")
    return ImageOps.exif_transpose(opened)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_GREY:
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of any depth as 8-bit grey, from its darkest to its brightest pixel; one level only becomes black."""
    levels = np.asarray(image, dtype=np.float64)
    if not np.isfinite(levels).all():
        raise ImageError("pixels that are not finite numbers")
    lowest, span = levels.min(), np.ptp(levels)
    scaled = (levels - lowest) * (255 / span) if span else np.zeros_like(levels)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
