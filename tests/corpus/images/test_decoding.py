"""Decoding: every file format gives the drawn image, and a bad file is refused with a reason."""

from __future__ import annotations

import contextlib
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from stages.corpus.images.decoding import ImageError, decode
from tests.conftest import resize_settings

SIZE = (40, 24)


def scene() -> Image.Image:
    """Grey, black to white, and different in every corner."""
    x, y = np.meshgrid(np.linspace(0, 155, SIZE[0]), np.linspace(0, 100, SIZE[1]))
    return Image.fromarray(np.rint(x + y).astype(np.uint8))


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def deep(dtype: str, factor: float, offset: float) -> Image.Image:
    return Image.fromarray((np.asarray(scene(), dtype=np.float64) * factor + offset).astype(dtype))


def with_alpha(mode: str) -> Image.Image:
    image = scene().convert(mode)
    image.putalpha(Image.new("L", SIZE, 255))
    return image


FILES: dict[str, tuple[bytes, str]] = {
    "8-bit grey png": (saved(scene(), "PNG"), "L"),
    "rgb png": (saved(scene().convert("RGB"), "PNG"), "RGB"),
    "palette png": (saved(scene().quantize(256), "PNG"), "P"),
    "rgba png": (saved(with_alpha("RGBA"), "PNG"), "RGBA"),
    "la png": (saved(with_alpha("LA"), "PNG"), "LA"),
    "16-bit png": (saved(deep("uint16", 12, 700), "PNG"), "I;16"),
    "16-bit tiff": (saved(deep("uint16", 257, 0), "TIFF"), "I;16"),
    "big-endian 16-bit tiff": (saved(deep("uint16", 3, 30_000), "TIFF", big_endian=True), "I;16"),
    "signed 32-bit tiff": (saved(deep("int32", 1000, -100_000), "TIFF"), "I"),
    "float tiff": (saved(deep("float32", 0.01, -1), "TIFF"), "F"),
    "lzw tiff": (saved(scene(), "TIFF", compression="tiff_lzw"), "L"),
    "jpeg": (saved(scene().convert("RGB"), "JPEG", quality=95), "RGB"),
    "grey jpeg": (saved(scene(), "JPEG", quality=95), "L"),
    "cmyk jpeg": (saved(scene().convert("RGB").convert("CMYK"), "JPEG", quality=95), "CMYK"),
    "cmyk tiff": (saved(scene().convert("RGB").convert("CMYK"), "TIFF"), "CMYK"),
    "bmp": (saved(scene(), "BMP"), "L"),
    "webp": (saved(scene().convert("RGB"), "WEBP", quality=95), "RGB"),
    "gif": (saved(scene(), "GIF"), "P"),
    "first frame of a gif": (
        saved(scene(), "GIF", save_all=True, append_images=[Image.new("L", SIZE, 0)]),
        "P",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_gives_the_drawn_image(kind: str) -> None:
    content, mode = FILES[kind]
    decoded = decode(content, resize_settings(size=32, resample="bilinear"))
    assert (decoded.width, decoded.height, decoded.mode) == (*SIZE, mode)
    assert (decoded.image.mode, decoded.image.size) == ("RGB", (32, 32))
    expected = np.asarray(scene().resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(np.asarray(decoded.image, dtype=float) - expected[..., None]).max() < 8


def test_a_1_bit_image_stays_black_and_white() -> None:
    image = Image.fromarray(np.asarray(scene()) > 127)
    levels = np.asarray(
        decode(saved(image, "PNG"), resize_settings(size=SIZE[1], resample="nearest")).image
    )
    assert set(np.unique(levels)) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = scene().convert("RGB")
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = saved(stored, kind, exif=exif, **({"quality": 95} if kind != "TIFF" else {}))
    decoded = decode(content, resize_settings(size=32, resample="bilinear"))
    assert (decoded.width, decoded.height) == SIZE
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(np.asarray(decoded.image, dtype=float) - expected).max() < 10


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_image_is_black(mode: str) -> None:
    image = Image.new("L", SIZE, 255).convert(mode)
    image.putalpha(0)
    assert np.asarray(decode(saved(image, "PNG"), resize_settings(size=8)).image).max() == 0


def test_a_transparent_palette_colour_is_black() -> None:
    image = Image.new("P", SIZE, 0)
    image.putpalette([255, 255, 255, 0, 0, 255])
    content = saved(image, "PNG", transparency=0)
    assert np.asarray(decode(content, resize_settings(size=8)).image).max() == 0


def test_a_deep_image_of_a_single_level_is_black() -> None:
    image = Image.fromarray(np.full(SIZE[::-1], 9000, dtype=np.uint16))
    assert np.asarray(decode(saved(image, "PNG"), resize_settings(size=8)).image).max() == 0


def test_the_filter_is_the_one_in_the_settings() -> None:
    """Equal to Pillow's; where libvips resizes, but for rounding and the handling of borders."""
    names = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
    waves = np.add.outer(np.sin(np.arange(150) / 1.7), np.cos(np.arange(200) / 2.3))
    image = Image.fromarray(np.rint(127.5 + 60 * waves).astype(np.uint8))
    content = saved(image, "PNG")

    def by_pillow(name: str, size: int) -> np.ndarray[Any, Any]:
        resized = image.resize((size, size), Image.Resampling[name.upper()])
        return np.asarray(resized, dtype=float)

    for size, name in product((60, 160), names):
        decoded = decode(content, resize_settings(size=size, resample=name)).image
        levels = np.asarray(decoded, dtype=float)[..., 0]
        errors = {other: np.abs(levels - by_pillow(other, size)) for other in names}
        error = errors.pop(name)
        if size < 150 and name in ("bilinear", "bicubic", "lanczos"):
            assert error.mean() < 0.5, name
            assert error[1:-1, 1:-1].max() <= 2, name
        else:
            assert error.max() == 0, name
        assert min(other.mean() for other in errors.values()) > max(0.1, 4 * error.mean()), name


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"just text", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image of a known format"),
        (FILES["jpeg"][0][:-200], "truncated or damaged"),
        (FILES["rgb png"][0][:-60], "truncated or damaged"),
        (FILES["lzw tiff"][0][:-60], "truncated or damaged|not an image"),
        (FILES["bmp"][0][:-60], "truncated or damaged"),
        (FILES["webp"][0][:-60], "truncated or damaged|not an image"),
        (FILES["jpeg"][0][:20], "truncated or damaged|not an image"),
        (saved(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "TIFF"), "not finite"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(content: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        decode(content, resize_settings(size=32))


@pytest.mark.parametrize("kind", ["rgb png", "jpeg", "webp", "lzw tiff", "bmp", "gif"])
def test_a_file_with_too_many_pixels_is_refused(kind: str) -> None:
    """The limit is in millions: SIZE has 960 pixels."""
    content = FILES[kind][0]
    assert decode(content, resize_settings(size=32, max_megapixels=960e-6)).width == SIZE[0]
    for limit in (959e-6, 10e-6):
        with pytest.raises(ImageError, match=r"40 x 24.*resize\.max_megapixels"):
            decode(content, resize_settings(size=32, max_megapixels=limit))


@pytest.mark.filterwarnings("ignore")
def test_files_with_random_bytes_changed_decode_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    settings = resize_settings(size=16, resample="nearest")
    for content, _ in FILES.values():
        for _ in range(10):
            damaged = bytearray(content)
            for at in rng.integers(0, len(content), 5):
                damaged[at] = int(rng.integers(256))
            with contextlib.suppress(ImageError):
                decode(bytes(damaged), settings)
