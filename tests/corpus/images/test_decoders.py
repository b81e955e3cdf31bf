"""libvips and Pillow give the same images, and each setting has its effect."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.core.params import Resize, load_params
from stages.corpus.images import decoding, pillow_images
from stages.corpus.images.decoding import ImageError, decode, encode
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import ROOT

DEFAULT = load_params(ROOT / "params.yaml").resize


def settings(**changes: Any) -> Resize:
    return Resize.model_validate(DEFAULT.model_dump() | changes)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def smooth(width: int, height: int) -> Image.Image:
    """Soft blobs with a little noise, like phantoms and photographs; the size is the seed."""
    rng = np.random.default_rng([width, height])
    y, x = np.mgrid[0:height, 0:width]
    levels = np.zeros((height, width, 3))
    for _ in range(5):
        distance = (x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2
        colour = rng.uniform(20, 110, 3)
        levels += colour * np.exp(-distance / (rng.uniform(0.1, 0.3) * width) ** 2)[..., None]
    levels += rng.normal(0, 4, levels.shape)
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


@functools.cache
def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def pillow_error(content: bytes, resize: Resize) -> float:
    """Mean difference in grey levels from Pillow's result at full resolution."""
    resample = Image.Resampling[resize.resample.upper()]
    with Image.open(BytesIO(content)) as opened:
        expected = opened.convert("RGB").resize((resize.size, resize.size), resample)
    levels = np.asarray(decode(content, resize).image, dtype=float)
    return float(np.abs(levels - np.asarray(expected)).mean())


@pytest.mark.parametrize(
    "size",
    [(1200, 900), (2048, 2048), (500, 1300), (384, 384), (385, 2000), (300, 900), (64, 48), (1, 1)],
)
@pytest.mark.parametrize("make", [smooth, noise])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_are_within_half_a_grey_level_of_pillow(
    kind: str, make: Any, size: tuple[int, int]
) -> None:
    options = {"compress_level": 1} if kind == "PNG" else {"quality": 90}
    assert pillow_error(saved(make(*size), kind, **options), DEFAULT) < 0.5


@pytest.mark.parametrize(
    "resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_every_filter_agrees_with_pillow(mode: str, resample: str) -> None:
    image = smooth(900, 700).convert(mode)
    assert pillow_error(saved(image, "PNG"), settings(resample=resample)) < 0.6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_show_the_background(kind: str) -> None:
    image = smooth(600, 500).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 600), (500, 1)).astype(np.uint8)))
    content = saved(image, kind, lossless=True) if kind == "WEBP" else saved(image, kind)
    for name, level in (("black", 0), ("white", 255)):
        background = Image.new("RGBA", image.size, (level, level, level, 255))
        opaque = Image.alpha_composite(background, image).convert("RGB")
        expected = np.asarray(opaque.resize((384, 384), Image.Resampling.BICUBIC), dtype=float)
        levels = np.asarray(decode(content, settings(background=name)).image, dtype=float)
        assert np.abs(levels - expected).mean() < 1
        assert abs(float(levels[:, :4].mean()) - level) < 8


def test_shrink_on_load_decodes_large_jpeg_files_smaller() -> None:
    shrinking = settings(shrink_on_load=True)
    large = saved(smooth(1800, 1700), "JPEG", quality=90)
    assert pillow_error(large, shrinking) < 1
    decoded = decode(large, shrinking)
    assert decoded.image.tobytes() != decode(large, DEFAULT).image.tobytes()
    assert (decoded.width, decoded.height) == (1800, 1700)
    small = saved(smooth(1000, 1000), "JPEG", quality=90)
    assert decode(small, shrinking).image.tobytes() == decode(small, DEFAULT).image.tobytes()


def test_deep_grey_is_scaled_according_to_its_setting() -> None:
    levels = np.tile(np.linspace(1000, 3000, 400), (400, 1)).astype(np.uint16)
    levels[0, :2] = (0, 65_535)  # so that the range is that of the depth
    content = saved(Image.fromarray(levels), "PNG")

    def scaled(deep_grey: str | list[float]) -> Any:
        resize = settings(deep_grey=deep_grey, resample="nearest", size=400)
        return np.asarray(decode(content, resize).image)[..., 0]

    assert np.array_equal(scaled("depth"), np.rint(levels / 257).astype(np.uint8))
    assert np.array_equal(scaled("range"), scaled("depth"))
    window = scaled([1000.0, 3000.0])
    assert (window[0, 0], window[0, 1]) == (0, 255)
    assert np.array_equal(window[1], np.rint((levels[1] - 1000.0) * 255 / 2000).astype(np.uint8))
    percentiles = scaled("percentiles")
    assert (percentiles.min(), percentiles.max()) == (0, 255)
    assert abs(float(np.median(percentiles)) - 127) < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(Image.new("RGB", (1200, 900)), kind)
    assert decode(content, settings(max_megapixels=2)).width == 1200
    monkeypatch.setattr(decoding, "_resize_by_libvips", None)
    monkeypatch.setattr(pillow_images, "to_rgb", None)
    with pytest.raises(ImageError, match=r"1200 x 900.*resize\.max_megapixels.*1 ") as caught:
        decode(content, settings(max_megapixels=1))
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_images_the_first_is_used_or_the_file_refused(kind: str) -> None:
    first = Image.new("RGB", (50, 40), (200, 200, 200))
    content = saved(first, kind, save_all=True, append_images=[Image.new("RGB", (50, 40))])
    assert np.asarray(decode(content, DEFAULT).image).min() > 150
    with pytest.raises(ImageError, match=r"2 images.*resize\.frames") as caught:
        decode(content, settings(frames="refuse"))
    assert caught.value.reason == Reason.IMAGE_FRAMES
    assert decode(saved(first, kind), settings(frames="refuse")).width == 50


def test_parallel_decoding_gives_the_same_bytes_and_messages() -> None:
    contents = [
        saved(smooth(900 + 10 * number, 800), kind)
        for number, kind in product(range(4), ("PNG", "JPEG", "WEBP"))
    ]
    truncated = [content[: len(content) * 2 // 3] for content in contents]

    def result(content: bytes) -> bytes | str:
        try:
            return encode(decode(content, DEFAULT).image)
        except ImageError as error:
            return str(error)

    sequential = [result(content) for content in contents + truncated]
    assert sum(isinstance(each, str) for each in sequential) == len(truncated)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(result, (contents + truncated) * 2)) == sequential * 2


def test_a_png_contains_only_the_pixels() -> None:
    image = smooth(384, 384)
    content = encode(image)
    with Image.open(BytesIO(content)) as opened:
        assert (opened.format, opened.mode, opened.tobytes()) == ("PNG", "RGB", image.tobytes())
        assert set(opened.info) <= {"dpi"}
    assert content == encode(image.copy())
