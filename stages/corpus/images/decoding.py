"""Decode image files of all supported kinds and resize them to square RGB images.

The kind of a file is detected from its first bytes, never from its name. PNG, JPEG and WebP with 8
bits per channel are decoded by libvips, which resizes colours as a stream, without all pixels in
memory at once; everything else is decoded by Pillow. Both agree within half a grey level
(docs/ingest-images.md has the numbers). A truncated file is refused: no image is ever partial.

8-bit images keep their values. Deeper and real-valued ones have no agreed range and are scaled
according to `resize.deep_grey`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Final

# Images are decoded in parallel, each by one thread.
os.environ.setdefault("VIPS_CONCURRENCY", "1")
# Any value stops libvips from printing the warnings that `_decode_by_libvips` gets as errors.
os.environ.setdefault("VIPS_WARNING", "0")

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from stages.core.params import Resize
from stages.corpus.images.gif_layout import GIF_SIGNATURES
from stages.corpus.images.pillow_images import (
    BACKGROUNDS,
    FORMATS,
    Decoded,
    check_frames,
    check_size,
    decode_by_pillow,
    resize_by_pillow,
    undamaged,
)
from stages.corpus.images.rw_lock import ReadWriteLock
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

__all__ = [
    "DECODER",
    "ENCODER",
    "FORMATS",
    "SIGNATURES",
    "Decoded",
    "ImageError",
    "decode",
    "encode",
    "resize_by_pillow",
]

_RULES: Final = 6
"""Raise it when equal bytes and settings give another image, other metadata, another refusal."""
_DECODERS: Final = (
    "nibabel",
    "numpy",
    "pillow",
    "pydicom",
    "pyjpegls",
    "pylibjpeg-openjpeg",
    "python-gdcm",
)
_LIBVIPS: Final = f"libvips {'.'.join(str(pyvips.version(part)) for part in range(3))}"
DECODER: Final = " ".join(
    [f"rules {_RULES}", _LIBVIPS]
    + [f"{package} {metadata.version(package)}" for package in _DECODERS]
)
"""Versions that determine the decoded pixels: results of different ones are never mixed."""
ENCODER: Final = f"png sub 3 {_LIBVIPS}"
"""Settings and version that determine the bytes of a PNG file with given pixels."""

SIGNATURES: Final[Mapping[str, tuple[bytes, ...]]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "WEBP": (b"RIFF",),
    "GIF": GIF_SIGNATURES,
}
"""Format -> what its files begin with."""
_LIBVIPS_FORMATS: Final = ("PNG", "JPEG", "WEBP")
_KERNELS: Final = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}
"""Pillow's filter -> libvips's kernel with the same formula, where there is one."""
_PNG_MODES: Final = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
"""Colour type of a PNG -> Pillow's mode."""
_MODES: Final = {("JPEG", 1): "L", ("JPEG", 3): "RGB", ("WEBP", 3): "RGB", ("WEBP", 4): "RGBA"}
"""(format, number of bands) -> Pillow's mode."""
# "remature end": libjpeg writes "Premature" and "premature"
_DAMAGE: Final = ("Corrupt JPEG data", "remature end", "Inconsistent progression")
"""Warnings of libjpeg after which it continues with grey, or with misplaced pixels.

libvips passes on libjpeg's text but no code, so the text is compared, here only;
tests/corpus/images/test_decoding.py has such files.
"""
_MAX_SHRINK: Final = 8
_TRANSPOSITIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that shows the stored image upright."""
_SWAPS_SIDES: Final = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_libvips_lock: Final = ReadWriteLock()

pyvips.cache_set_max(0)
pyvips.block_untrusted_set(True)
# pyvips logs twice per call, the second record from within the first: with two log handlers, two
# threads that do so wait for each other forever.
logging.getLogger("pyvips").setLevel(logging.WARNING)


def decode(content: bytes, settings: Resize) -> Decoded:
    """Decode a file, apply its EXIF orientation, and resize it to a square.

    Raises ImageError with the reason.
    """
    image_format = _detect_format(content)
    if image_format in _LIBVIPS_FORMATS:
        decoded = _decode_by_libvips(content, image_format, settings)
        if decoded is not None:
            return decoded
    return undamaged(lambda: decode_by_pillow(content, settings))


def encode(image: Image.Image) -> bytes:
    """Encode an RGB image as PNG: the same pixels give the same bytes."""
    with _libvips_lock.shared():
        pixels = pyvips.Image.new_from_memory(
            image.tobytes(), image.width, image.height, 3, "uchar"
        )
        srgb = pixels.copy(interpretation="srgb")
        # as small as Pillow's default, three to six times as fast (docs/ingest-images.md)
        content: bytes = srgb.pngsave_buffer(compression=3, filter="sub", keep="none")
        return content


_NOT_IMAGES: Final = {
    b"version https://git-lfs": "a pointer of Git LFS instead of the image: run `git lfs pull`",
    b"<!doctype html": "an HTML page instead of the image: download it again, signed in if needed",
    b"<html": "an HTML page instead of the image: download it again, signed in if needed",
    b"<?xml": "XML, perhaps an error message or an SVG drawing: download it again, or export a PNG",
    b"%pdf": "a PDF: export its page as PNG",
    b"pk\x03\x04": "an archive: unpack it, and name the files in it",
    b"\x1f\x8b": "packed by gzip, and not NIfTI, or truncated: unpack it, and name the files in it",
}
"""Beginning of a file, in lower case -> what it is, and what to do."""
_DICOM_STARTS: Final = (b"\x02\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")
"""First elements of a DICOM data set, little endian (PS3.6)."""


def _detect_format(content: bytes) -> str:
    if not content:
        raise ImageError("the file is empty", Reason.IMAGE_EMPTY)
    for image_format, signatures in SIGNATURES.items():
        if content.startswith(signatures) and (
            image_format != "WEBP" or content[8:12] == b"WEBP"  # other RIFF files: WAV, AVI
        ):
            return image_format
    for start, instead in _NOT_IMAGES.items():
        if content[:512].lstrip().lower().startswith(start):
            raise ImageError(instead, Reason.IMAGE_FORMAT)
    if content[:4] in _DICOM_STARTS:
        raise ImageError(
            "perhaps DICOM, but without DICM at byte 128: write it again as a DICOM file (PS3.10),"
            " for example with `dcmconv`",
            Reason.IMAGE_FORMAT,
        )
    known = ", ".join((*FORMATS, "DICOM", "NIfTI"))
    raise ImageError(f"not an image of a known format ({known})", Reason.IMAGE_FORMAT)


# --- libvips


def _decode_by_libvips(content: bytes, image_format: str, settings: Resize) -> Decoded | None:
    """Decode with libvips, refusing damaged files; None for pixels that are left to Pillow.

    1. With other threads, any warning is an error.
    2. Alone, likewise, for the text of the warning: libvips has one error buffer for all threads.
       Refused if it is one of `_DAMAGE`.
    3. Alone, other warnings are tolerated and errors refused.
    """
    try:
        with _libvips_lock.shared():
            return _try_libvips(content, image_format, settings, fail_on="warning")
    except pyvips.Error:
        pass
    with _libvips_lock.exclusive():
        try:
            pyvips.vips_lib.vips_error_clear()
            return _try_libvips(content, image_format, settings, fail_on="warning")
        except pyvips.Error as error:
            # libjpeg reports its first warning only, and a mild one of these may hide a worse one:
            # so even the mild ones are refused
            if any(words in str(error) for words in _DAMAGE):
                raise ImageError(f"truncated or damaged: {_first_line(error)}") from error
        try:
            pyvips.vips_lib.vips_error_clear()
            return _try_libvips(content, image_format, settings, fail_on="error")
        except pyvips.Error as error:
            raise ImageError(f"truncated or damaged: {_first_line(error)}") from error


def _try_libvips(
    content: bytes, image_format: str, settings: Resize, fail_on: str
) -> Decoded | None:
    """Decode with libvips once; pyvips.Error for damage of severity `fail_on` or worse."""
    opened = _open(content, fail_on)
    mode = _pillow_mode(content, image_format, opened)
    width: int = opened.width
    height: int = opened.height
    check_size(width, height, settings)
    check_frames(_count_pages(content, image_format, opened), settings)
    if mode is None:
        return None
    if settings.shrink_on_load and image_format == "JPEG":
        factor = _shrink_factor(width, height, settings.size)
        if factor > 1:
            opened = _open(content, fail_on, shrink=factor)
    opaque = opened
    if opened.hasalpha():
        opaque = opened.flatten(background=BACKGROUNDS[settings.background])
    image = Image.fromarray(_resize_by_libvips(opaque, settings)).convert("RGB")
    orientation = _header_number(opened, "orientation")
    if orientation in _TRANSPOSITIONS:
        image = image.transpose(_TRANSPOSITIONS[orientation])
    if orientation in _SWAPS_SIDES:
        return Decoded(image, height, width, mode)
    return Decoded(image, width, height, mode)


def _open(content: bytes, fail_on: str, **options: Any) -> pyvips.Image:
    """Read the header; pixels are decoded, from top to bottom, when they are needed."""
    return pyvips.Image.new_from_buffer(
        content, "", access="sequential", fail_on=fail_on, **options
    )


def _header_number(opened: pyvips.Image, field: str) -> int:
    """An integer of the header, 1 by default."""
    return int(opened.get(field)) if opened.get_typeof(field) else 1


def _count_pages(content: bytes, image_format: str, opened: pyvips.Image) -> int:
    """Number of images in a file, from its header."""
    if image_format == "PNG":
        # libvips does not look for animations; their acTL chunk, which precedes the pixels (IDAT),
        # begins with the number of frames
        chunk = content.find(b"acTL", 0, content.find(b"IDAT"))
        if chunk > 0:
            return int.from_bytes(content[chunk + 4 : chunk + 8])
    return _header_number(opened, "n-pages")


def _first_line(error: pyvips.Error) -> str:
    lines = [line.strip() for line in str(error.detail or error.message).splitlines()]
    return next(filter(None, lines), type(error).__name__)


def _pillow_mode(content: bytes, image_format: str, opened: pyvips.Image) -> str | None:
    """Pillow's mode of the file; None where libvips and Pillow decode to different pixels."""
    if opened.format != "uchar":
        return None
    if image_format == "PNG":
        bit_depth, colour_type = content[24:26]  # of the IHDR chunk, which is always the first
        return "1" if (bit_depth, colour_type) == (1, 0) else _PNG_MODES[colour_type]
    return _MODES.get((image_format, opened.bands))


def _shrink_factor(width: int, height: int, size: int) -> int:
    """Power of two by which libjpeg may shrink an image that must stay twice as large as `size`."""
    factor = 1
    while factor < _MAX_SHRINK and min(width, height) >= 4 * factor * size:
        factor *= 2
    return factor


def _resize_by_libvips(opened: pyvips.Image, settings: Resize) -> NDArray[np.uint8]:
    """Grey (size, size) or RGB (size, size, 3) values, 0 to 255; decoding happens here."""
    size = settings.size
    enlarged = min(opened.width, opened.height) < size
    # libvips enlarges by other formulas than Pillow, and is no faster with one channel
    if enlarged or opened.bands == 1 or settings.resample not in _KERNELS:
        return np.asarray(resize_by_pillow(Image.fromarray(_pixels(opened)), settings))
    # Widths first, as Pillow does: both clip to 0 to 255 in between, so in libvips's own order
    # black-and-white content would be off by more than a level.
    kernel = _KERNELS[settings.resample]
    narrow = opened.reduceh(opened.width / size, kernel=kernel)
    return _pixels(narrow.reducev(opened.height / size, kernel=kernel))


def _pixels(opened: pyvips.Image) -> NDArray[np.uint8]:
    """(height, width) for one band, otherwise (height, width, bands)."""
    # not opened.numpy(), which makes a 0-dimensional array of a single pixel
    shape = (opened.height, opened.width, opened.bands)
    pixels = np.frombuffer(opened.write_to_memory(), dtype=np.uint8)
    return pixels.reshape(shape[:2] if opened.bands == 1 else shape)
