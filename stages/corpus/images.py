"""Medical pictures as they come, decoded to the square RGB pictures a policy sees.

8-bit pictures keep their values. 16-bit, 32-bit and float grey is scaled linearly from its own darkest and brightest
pixel to 0..255: such files use any part of their range, and nothing in them says which. What is see-through shows black.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.corpus.image_errors import ImageError

__all__ = ["FORMATS", "Decoded", "ImageError", "decode"]

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
