"""Medical images as they come, decoded to the square RGB images a policy sees.

What a file is, its first bytes say, never its name. PNG, JPEG and WebP with 8 bits a channel are
decoded by libvips, colours in a stream, without all of their pixels being in memory at once;
whatever else there is, by Pillow, whose result the other's equals within half a grey level
(docs/ingest-images.md has the numbers). A file that is not whole is refused: no image is ever half
there.

8-bit images keep their values. What is deeper or real-valued has no agreed range, and is scaled as
`resize.deep_grey` says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from typing import Any, Final

os.environ.setdefault(
    "VIPS_CONCURRENCY", "1"
)  # images are decoded beside each other, each by one thread
os.environ.setdefault(
    "VIPS_WARNING", "0"
)  # any value keeps libvips from printing what `_streamed` asks it for

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom, Resize
from stages.corpus.dicom.reader import Tags, is_dicom
from stages.corpus.dicom.series import read_series
from stages.corpus.images.rw_lock import ReadWriteLock
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

__all__ = [
    "DECODER",
    "ENCODER",
    "FORMATS",
    "Decoded",
    "ImageError",
    "decode",
    "decode_files",
    "encode",
]

FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
"""What is read at all: libvips and Pillow know more, some through external programs."""
_RULES: Final = 3
"""Raise it when the same bytes and settings give another image, other facts, or another reason for
refusal.
"""
_DECODERS: Final = (
    "numpy",
    "pillow",
    "pydicom",
    "pyjpegls",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "scipy",
)
DECODER: Final = " ".join(
    [f"rules {_RULES}", f"libvips {'.'.join(str(pyvips.version(part)) for part in range(3))}"]
    + [f"{package} {metadata.version(package)}" for package in _DECODERS]
)
"""What decodes: results of another one are not mixed with these."""
ENCODER: Final = f"png sub 3 libvips {'.'.join(str(pyvips.version(part)) for part in range(3))}"
"""What decides the bytes of a file with given pixels."""

_STARTS: Final[Mapping[str, tuple[bytes, ...]]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
}
_STREAMED: Final = ("PNG", "JPEG", "WEBP")
_KERNELS: Final = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}
"""Pillow's filter -> libvips's of the same formula, where there is one."""
_BACKGROUNDS: Final = {"black": 0, "white": 255}
_DEEP: Final = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_FULL: Final = {"I": 2**31, "I;16": 2**16, "I;16B": 2**16, "I;16L": 2**16, "I;16N": 2**16}
_PERCENTILES: Final = (0.5, 99.5)
_ROWS: Final = 64
_DAMAGE: Final = ("Corrupt JPEG data", "remature end", "Inconsistent progression")
"""Warnings of libjpeg after which it continues with grey, or with pixels in wrong places.

libvips passes libjpeg's text on and no code, so the text is compared, here only;
tests/corpus/images/test_decoding.py has such files.
"""
_LONGEST_SHRINK: Final = 8
_TURNED: Final = (5, 6, 7, 8)
"""EXIF orientations in which width and height change places."""

_blind_baseline: Final = ReadWriteLock()

# limits are checked here, on what a file's header says, before a pixel is decoded
Image.MAX_IMAGE_PIXELS = None
pyvips.cache_set_max(0)
pyvips.block_untrusted_set(True)
# of every call it tells two things, one while it tells the other: with two handlers, two threads
# that do so wait for each other forever
logging.getLogger("pyvips").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Decoded:
    """A (size, size) RGB image, and the file's own width and height, as seen (upright), and mode,
    by Pillow's name.
    """

    image: Image.Image
    width: int
    height: int
    mode: str
    """Of a DICOM file its photometric interpretation."""
    frames: Sequence[Image.Image] = ()
    """Of a DICOM series or multi-frame file all images in order, (size, size) RGB, `image` among
    them; decoded when asked for, so that asking may raise ImageError. Empty where there is one
    image only.
    """
    tags: Tags | None = None
    """Of a DICOM file what is passed on of its header."""


def decode_files(
    contents: Sequence[bytes], settings: Resize, dicom: Dicom, *, folder: bool = False
) -> Decoded:
    """Decode what a record names: one file of any kind, or a folder, which must hold the DICOM
    files of a series.

    Raises ImageError with the reason.
    """
    if not folder:
        contents = [contents[0]]  # read once: whoever gives them may fetch each anew
        # first of all: a file can be DICOM and another kind at once, and what DICOM says of
        # burned-in text must be heeded
        if not is_dicom(contents[0]):
            return decode(contents[0], settings)
    found = read_series(contents, dicom, settings.max_megapixels * 10**6)

    def resized(index: int) -> Image.Image:
        size = (settings.size, settings.size)
        return Image.fromarray(found.frames[index]).convert("RGB").resize(size, _filter(settings))

    images = LazySequence(len(found.frames), resized)
    shown = images[found.representative]
    frames = images if len(images) > 1 else ()
    return Decoded(
        shown, found.tags.columns, found.tags.rows, found.tags.photometric, frames, found.tags
    )


def decode(content: bytes, settings: Resize) -> Decoded:
    """Decode a file's bytes, turn the image as its EXIF says, and resize it to a square. Raises
    ImageError with the reason.
    """
    kind = _kind(content)
    if kind in _STREAMED and (decoded := _streamed(content, kind, settings)) is not None:
        return decoded
    try:
        return _by_pillow(content, settings)
    except UnidentifiedImageError:
        raise ImageError("truncated or damaged: its header cannot be read") from None
    except (ImageError, MemoryError):
        raise
    # all is in memory: whatever a decoder raises, and they raise all kinds, is the file's fault
    except Exception as error:
        raise ImageError(f"truncated or damaged: {error or type(error).__name__}") from error


def encode(image: Image.Image) -> bytes:
    """An RGB image as a PNG file: the same bytes for the same pixels."""
    with _blind_baseline.shared():
        made = pyvips.Image.new_from_memory(image.tobytes(), image.width, image.height, 3, "uchar")
        # as small as by Pillow's default, and faster three to six times (docs/ingest-images.md)
        content: bytes = made.copy(interpretation="srgb").pngsave_buffer(
            compression=3, filter="sub", keep="none"
        )
        return content


def _kind(content: bytes) -> str:
    if not content:
        raise ImageError("the file is empty", Reason.IMAGE_EMPTY)
    for kind, starts in _STARTS.items():
        if content.startswith(starts) and (kind != "WEBP" or content[8:12] == b"WEBP"):
            return kind
    raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})", Reason.IMAGE_FORMAT)


def _check_size(width: int, height: int, settings: Resize) -> None:
    if width * height > settings.max_megapixels * 10**6:
        raise ImageError(
            f"too many pixels: {width} x {height}; resize.max_megapixels allows"
            f" {settings.max_megapixels} million",
            Reason.IMAGE_TOO_LARGE,
        )
    if not width or not height:
        raise ImageError("truncated or damaged: an image without pixels")


def _streamed(content: bytes, kind: str, settings: Resize) -> Decoded | None:
    """The image by libvips; None if it is of a kind that is left to Pillow."""
    try:
        with _blind_baseline.shared():
            return _by_libvips(content, kind, settings, "warning")
    except pyvips.Error:
        pass
    # libvips keeps what went wrong in one place for all threads: only alone can be told whose it is
    with _blind_baseline.alone():
        try:
            pyvips.vips_lib.vips_error_clear()
            return _by_libvips(content, kind, settings, "warning")
        except pyvips.Error as error:
            # of several things libjpeg tells the first only: behind a harmless one there may be a
            # worse
            if any(words in str(error) for words in _DAMAGE):
                raise ImageError(f"truncated or damaged: {_first_line(error)}") from error
        try:
            pyvips.vips_lib.vips_error_clear()
            return _by_libvips(content, kind, settings, "error")
        except pyvips.Error as error:
            raise ImageError(f"truncated or damaged: {_first_line(error)}") from error


def _by_libvips(content: bytes, kind: str, settings: Resize, fail_on: str) -> Decoded | None:
    opened = _open(content, fail_on)
    mode = _mode(content, kind, opened)
    _check_size(opened.width, opened.height, settings)
    _check_frames(_pages(content, opened), settings)
    if mode is None:
        return None
    width, height = opened.width, opened.height
    if (
        settings.shrink_on_load
        and kind == "JPEG"
        and (factor := _shrink(width, height, settings.size)) > 1
    ):
        opened = _open(content, fail_on, shrink=factor)
    image = Image.fromarray(_resized(_opaque(opened, settings), settings)).convert("RGB")
    orientation = _number(opened, "orientation")
    if orientation in _TURNED:
        width, height = height, width
    return Decoded(_turned(image, orientation), width, height, mode)


def _open(content: bytes, fail_on: str, **options: Any) -> pyvips.Image:
    return pyvips.Image.new_from_buffer(
        content, "", access="sequential", fail_on=fail_on, **options
    )


def _number(opened: pyvips.Image, field: str) -> int:
    return int(opened.get(field)) if opened.get_typeof(field) else 1


def _pages(content: bytes, opened: pyvips.Image) -> int:
    """How many images a file says it holds; libvips does not look for those of an animated PNG."""
    at = (
        content.find(b"acTL", 0, content.find(b"IDAT"))
        if content.startswith(_STARTS["PNG"])
        else -1
    )
    return int.from_bytes(content[at + 4 : at + 8]) if at > 0 else _number(opened, "n-pages")


def _first_line(error: pyvips.Error) -> str:
    lines = [
        line.strip() for line in str(error.detail or error.message).splitlines() if line.strip()
    ]
    return lines[0] if lines else type(error).__name__


def _mode(content: bytes, kind: str, opened: pyvips.Image) -> str | None:
    """Pillow's name for how the pixels are stored; None for what libvips shows otherwise than
    Pillow does.
    """
    if opened.format != "uchar":
        return None
    if kind == "PNG":
        depth, colour = content[24], content[25]
        return (
            "1"
            if (depth, colour) == (1, 0)
            else {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}[colour]
        )
    return {("JPEG", 1): "L", ("JPEG", 3): "RGB", ("WEBP", 3): "RGB", ("WEBP", 4): "RGBA"}.get(
        (kind, opened.bands)
    )


def _shrink(width: int, height: int, size: int) -> int:
    """The power of two by which a JPEG may be decoded smaller, and still be twice as large as what
    is made of it.
    """
    factor = 1
    while factor < _LONGEST_SHRINK and min(width, height) >= 4 * factor * size:
        factor *= 2
    return factor


def _opaque(opened: pyvips.Image, settings: Resize) -> pyvips.Image:
    return (
        opened.flatten(background=_BACKGROUNDS[settings.background])
        if opened.hasalpha()
        else opened
    )


def _resized(opened: pyvips.Image, settings: Resize) -> NDArray[np.uint8]:
    """Grey or RGB values, (size, size) or (size, size, 3); decoding happens here."""
    size = settings.size
    if (
        opened.bands > 1
        and settings.resample in _KERNELS
        and min(opened.width, opened.height) >= size
    ):
        # in Pillow's order, widths first: by libvips's own, images that are black and white only
        # are off by more than a level
        kernel = _KERNELS[settings.resample]
        return _values(
            opened.reduceh(opened.width / size, kernel=kernel).reducev(
                opened.height / size, kernel=kernel
            )
        )
    # libvips enlarges by other formulas than Pillow, and is no faster with one channel
    return np.asarray(Image.fromarray(_values(opened)).resize((size, size), _filter(settings)))


def _values(opened: pyvips.Image) -> NDArray[np.uint8]:
    shape = (
        (opened.height, opened.width)
        if opened.bands == 1
        else (opened.height, opened.width, opened.bands)
    )
    return np.frombuffer(opened.write_to_memory(), dtype=np.uint8).reshape(shape)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    return image.transpose(Image.Transpose(turns[orientation])) if orientation in turns else image


def _filter(settings: Resize) -> Image.Resampling:
    return Image.Resampling[settings.resample.upper()]


def _by_pillow(content: bytes, settings: Resize) -> Decoded:
    opened = Image.open(BytesIO(content), formats=FORMATS)
    _check_size(opened.width, opened.height, settings)
    _check_frames(getattr(opened, "n_frames", 1), settings)
    upright = ImageOps.exif_transpose(opened)
    image = _rgb(upright, settings).resize((settings.size, settings.size), _filter(settings))
    return Decoded(image, upright.width, upright.height, upright.mode)


def _check_frames(number: int, settings: Resize) -> None:
    if number > 1 and settings.frames == "refuse":
        raise ImageError(
            f"{number} images in one file, and resize.frames is refuse", Reason.IMAGE_FRAMES
        )


def _rgb(image: Image.Image, settings: Resize) -> Image.Image:
    if image.mode in _DEEP:
        return _scaled(image, settings.deep_grey).convert("RGB")
    if image.has_transparency_data:
        level = _BACKGROUNDS[settings.background]
        behind = Image.new("RGBA", image.size, (level, level, level, 255))
        return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, how: str) -> Image.Image:
    """Grey of any depth as 8-bit grey; what has one level only becomes black, unless its depth says
    what that level is.
    """
    levels = np.asarray(image)
    if levels.dtype.kind == "f" and not np.isfinite(levels).all():
        raise ImageError("pixels that are not finite numbers")
    if how == "depth" and image.mode in _FULL:
        lowest, highest = 0.0, float(_FULL[image.mode] - 1)
    elif how == "percentiles":
        lowest, highest = (float(level) for level in np.percentile(levels, _PERCENTILES))
    else:
        lowest, highest = float(levels.min()), float(levels.max())
    grey = np.zeros(levels.shape, dtype=np.uint8)
    if highest > lowest:
        for start in range(0, len(levels), _ROWS):  # eight bytes a pixel, but never of all pixels
            rows = (levels[start : start + _ROWS].astype(np.float64) - lowest) * (
                255 / (highest - lowest)
            )
            grey[start : start + _ROWS] = np.rint(np.clip(rows, 0, 255))
    return Image.fromarray(grey)
