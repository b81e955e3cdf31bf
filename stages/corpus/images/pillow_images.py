"""Decode images with Pillow: those that libvips does not read, or reads to other pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.core.params import Resize
from stages.corpus.images.gif_layout import GIF_SIGNATURES, read_gif_layout
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

if TYPE_CHECKING:
    from stages.corpus.dicom.reader import Tags

Result = TypeVar("Result")

FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
"""Supported formats: libvips and Pillow know more, some through external programs."""
BACKGROUNDS: Final = {"black": 0, "white": 255}
DEEP_LEVELS: Final = {"I": 2**31, "I;16": 2**16, "I;16B": 2**16, "I;16L": 2**16, "I;16N": 2**16}
"""Pillow's modes of integer grey with more than 8 bits -> number of levels."""
_PERCENTILES: Final = (0.5, 99.5)
_STRIP_ROWS: Final = 64
_MAX_COUNTED: Final = 10_000
"""Pages of a TIFF."""

# Limits are checked here, against the header of a file, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Decoded:
    """A decoded image, and what its file looked like."""

    image: Image.Image
    """(size, size) RGB."""
    width: int
    """Of the file, upright."""
    height: int
    mode: str
    """Of the file, by Pillow's name; for DICOM its photometric interpretation, for NIfTI the type
    of its voxels.
    """
    frames: Sequence[Image.Image] = ()
    """All slices of a DICOM series, of NIfTI or of a folder, or frames of a file, in order, (size,
    size) RGB. Each is decoded on access, which may raise ImageError. Empty for a single one.
    """
    representative: int = 0
    """Index in `frames` of `image`."""
    tags: Tags | None = None
    """Of DICOM, the elements of the header that are passed on."""
    pages: int = 1
    """Images in a TIFF or GIF file, of a TIFF at most 10,000; without `frames`, only the first of
    them was decoded.
    """


def undamaged(work: Callable[[], Result]) -> Result:
    """What `work` returns; whatever a decoder raises over a file in memory, as ImageError."""
    try:
        return work()
    except UnidentifiedImageError:
        raise ImageError("truncated or damaged: its header cannot be read") from None
    except (ImageError, MemoryError):
        raise
    # The content is in memory, so any other exception (decoders raise all kinds) is its fault.
    except Exception as error:
        raise ImageError(f"truncated or damaged: {error or type(error).__name__}") from error


def open_image(content: bytes, settings: Resize) -> Image.Image:
    """Open a file at its first image, without decoding it; ImageError if that is too large."""
    if content.startswith(GIF_SIGNATURES):
        # Pillow allocates what the first frame covers before its size can be checked
        for width, height in read_gif_layout(content, max_frames=0).extents:
            _check_area(width, height, settings)
    opened = Image.open(BytesIO(content), formats=FORMATS)
    check_size(opened.width, opened.height, settings)
    return opened


def check_size(width: int, height: int, settings: Resize) -> None:
    """ImageError for an image of more pixels than resize.max_megapixels, or of none."""
    _check_area(width, height, settings)
    if not width or not height:
        raise ImageError("truncated or damaged: an image without pixels")


def _check_area(width: int, height: int, settings: Resize) -> None:
    if width * height > settings.max_megapixels * 10**6:
        raise ImageError(
            f"too many pixels: {width} x {height}; resize.max_megapixels allows"
            f" {settings.max_megapixels} million",
            Reason.IMAGE_TOO_LARGE,
        )


def check_frames(count: int, settings: Resize) -> None:
    """ImageError for a file of several images, if resize.frames refuses these."""
    if count > 1 and settings.frames == "refuse":
        raise ImageError(
            f"{count} images in one file, and resize.frames is refuse", Reason.IMAGE_FRAMES
        )


def decode_by_pillow(content: bytes, settings: Resize) -> Decoded:
    """Decode the first image of a file. Raises ImageError, and whatever Pillow raises."""
    opened = open_image(content, settings)
    pages = _count_pages(opened)
    check_frames(pages, settings)
    upright = ImageOps.exif_transpose(opened)
    image = resize_by_pillow(to_rgb(upright, settings), settings)
    return Decoded(image, upright.width, upright.height, upright.mode, pages=pages)


def _count_pages(opened: Image.Image) -> int:
    """Number of images in a file; of a TIFF up to a limit: Pillow's time grows with its square."""
    if opened.format != "TIFF":
        return int(getattr(opened, "n_frames", 1))
    pages = len(list(islice(tiff_pages(opened), _MAX_COUNTED)))
    opened.seek(0)
    return pages


def tiff_pages(opened: Image.Image) -> Iterator[int]:
    """Index of each page of an open TIFF, whose header is read then, and no pixel."""
    for page in count():
        try:
            opened.seek(page)
        except EOFError:
            return
        yield page


def resize_by_pillow(image: Image.Image, settings: Resize) -> Image.Image:
    """Scale an image to the square of the settings."""
    resample = Image.Resampling[settings.resample.upper()]
    return image.resize((settings.size, settings.size), resample)


def to_rgb(image: Image.Image, settings: Resize) -> Image.Image:
    """An image of any mode as RGB, in the same size."""
    if is_deep(image):
        return _scale_to_8_bits(image, settings.deep_grey).convert("RGB")
    if image.has_transparency_data:
        level = BACKGROUNDS[settings.background]
        background = Image.new("RGBA", image.size, (level, level, level, 255))
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits, or of real numbers."""
    return image.mode == "F" or image.mode in DEEP_LEVELS


def grey_range(image: Image.Image, deep_grey: str | list[float]) -> tuple[float, float]:
    """Levels of a deep image that become black and white, as `resize.deep_grey` says."""
    return _range_of(_levels(image), image.mode, deep_grey)


def _levels(image: Image.Image) -> NDArray[Any]:
    levels = np.asarray(image)
    if levels.dtype.kind == "f" and not np.isfinite(levels).all():
        raise ImageError("pixels that are not finite numbers")
    return levels


def _scale_to_8_bits(image: Image.Image, deep_grey: str | list[float]) -> Image.Image:
    """Grey of any depth as 8-bit grey; an image without a range of levels becomes black."""
    levels = _levels(image)
    lowest, highest = _range_of(levels, image.mode, deep_grey)
    grey = np.zeros(levels.shape, dtype=np.uint8)
    if highest > lowest:
        scale = 255 / (highest - lowest)
        # float64 takes 8 bytes per pixel, so only a strip of rows is converted at a time
        for start in range(0, len(levels), _STRIP_ROWS):
            strip = slice(start, start + _STRIP_ROWS)
            scaled = (levels[strip].astype(np.float64) - lowest) * scale
            grey[strip] = np.rint(np.clip(scaled, 0, 255))
    return Image.fromarray(grey)


def _range_of(levels: NDArray[Any], mode: str, deep_grey: str | list[float]) -> tuple[float, float]:
    if isinstance(deep_grey, list):
        low, high = deep_grey
        return low, high
    if deep_grey == "depth" and mode in DEEP_LEVELS:
        return 0.0, float(DEEP_LEVELS[mode] - 1)
    if deep_grey == "percentiles":
        low, high = np.percentile(levels, _PERCENTILES)
        return float(low), float(high)
    return float(levels.min()), float(levels.max())
