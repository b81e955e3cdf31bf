"""What libvips decodes is what Pillow would have made of it, and settings do what they say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.core.params import Resize, load_params
from stages.corpus.images import decoding as images
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


def smooth(width: int, height: int) -> Image.Image:
    """Soft blobs with a little noise, as phantoms and photographs are; the same for the same size."""
    rng = np.random.default_rng([width, height])
    y, x = np.mgrid[0:height, 0:width]
    found = np.zeros((height, width, 3))
    for _ in range(5):
        distance = (x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2
        found += (
            rng.uniform(20, 110, 3)
            * np.exp(-distance / (rng.uniform(0.1, 0.3) * width) ** 2)[..., None]
        )
    return Image.fromarray(np.clip(found + rng.normal(0, 4, found.shape), 0, 255).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def by_pillow(content: bytes, how: Resize) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Pillow alone, at full resolution, in the plainest way."""
    with Image.open(BytesIO(content)) as opened:
        resized = opened.convert("RGB").resize(
            (how.size, how.size), Image.Resampling[how.resample.upper()]
        )
    return np.asarray(resized, dtype=float)


def apart(content: bytes, how: Resize) -> float:
    """Grey levels, on average."""
    return float(
        np.abs(np.asarray(decode(content, how).image, dtype=float) - by_pillow(content, how)).mean()
    )


@pytest.mark.parametrize(
    "size",
    [(1200, 900), (2048, 2048), (500, 1300), (384, 384), (385, 2000), (300, 900), (64, 48), (1, 1)],
)
@pytest.mark.parametrize("make", [smooth, noise])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_are_pillows_within_a_grey_level(
    kind: str, make: Any, size: tuple[int, int]
) -> None:
    assert (
        apart(
            saved(
                make(*size), kind, **({"quality": 90} if kind != "PNG" else {"compress_level": 1})
            ),
            DEFAULT,
        )
        < 0.5
    )


@pytest.mark.parametrize(
    "resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_every_filter_is_pillows(mode: str, resample: str) -> None:
    image = smooth(900, 700).convert(mode)
    assert apart(saved(image, "PNG"), settings(resample=resample)) < 0.6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_see_through_shows_what_is_behind(kind: str) -> None:
    image = smooth(600, 500).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 600), (500, 1)).astype(np.uint8)))
    content = saved(image, kind, lossless=True) if kind == "WEBP" else saved(image, kind)
    for name, level in (("black", 0), ("white", 255)):
        behind = Image.alpha_composite(
            Image.new("RGBA", image.size, (level, level, level, 255)), image
        ).convert("RGB")
        wanted = np.asarray(behind.resize((384, 384), Image.Resampling.BICUBIC), dtype=float)
        found = np.asarray(decode(content, settings(background=name)).image, dtype=float)
        assert np.abs(found - wanted).mean() < 1
        assert abs(float(found[:, :4].mean()) - level) < 8


def test_large_jpeg_files_may_be_decoded_smaller() -> None:
    content = saved(smooth(3200, 3100), "JPEG", quality=90)
    assert apart(content, settings(shrink_on_load=True)) < 1
    assert (
        decode(content, settings(shrink_on_load=True)).image.tobytes()
        != decode(content, DEFAULT).image.tobytes()
    )
    small = saved(smooth(1000, 1000), "JPEG", quality=90)
    assert (
        decode(small, settings(shrink_on_load=True)).image.tobytes()
        == decode(small, DEFAULT).image.tobytes()
    )
    assert (
        decode(content, settings(shrink_on_load=True)).width,
        decode(content, DEFAULT).height,
    ) == (3200, 3100)


def test_deep_grey_is_scaled_as_it_is_told() -> None:
    levels = np.tile(np.linspace(1000, 3000, 400), (400, 1)).astype(np.uint16)
    levels[0, 0], levels[0, 1] = 0, 65_535
    content = saved(Image.fromarray(levels), "PNG")

    def found(how: str) -> Any:
        return np.asarray(
            decode(content, settings(deep_grey=how, resample="nearest", size=400)).image
        )[..., 0]

    assert np.array_equal(found("depth"), np.rint(levels / 257).astype(np.uint8))
    assert np.array_equal(found("range"), found("depth")), (
        "the darkest and the brightest it could be are there"
    )
    assert (found("percentiles").min(), found("percentiles").max()) == (0, 255)
    assert abs(float(np.median(found("percentiles"))) - 127) < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(Image.new("RGB", (1200, 900)), kind)
    assert decode(content, settings(max_megapixels=2)).width == 1200
    monkeypatch.setattr(images, "_resized", None)
    monkeypatch.setattr(images, "_rgb", None)
    with pytest.raises(
        ImageError, match=r"too many pixels: 1200 x 900; resize.max_megapixels allows 1 million"
    ) as caught:
        decode(content, settings(max_megapixels=1))
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_images_the_first_is_shown_or_all_are_refused(kind: str) -> None:
    first = Image.new("RGB", (50, 40), (200, 200, 200))
    content = saved(first, kind, save_all=True, append_images=[Image.new("RGB", (50, 40))])
    assert np.asarray(decode(content, DEFAULT).image).min() > 150
    with pytest.raises(ImageError, match="2 images in one file, and resize.frames is refuse"):
        decode(content, settings(frames="refuse"))
    assert decode(saved(first, kind), settings(frames="refuse")).width == 50


def test_the_same_bytes_whatever_else_goes_on() -> None:
    contents = [
        saved(smooth(900 + 10 * number, 800), kind)
        for number in range(4)
        for kind in ("PNG", "JPEG", "WEBP")
    ]
    damaged = [content[: len(content) * 2 // 3] for content in contents]

    def made(content: bytes) -> bytes | str:
        try:
            return encode(decode(content, DEFAULT).image)
        except ImageError as error:
            return str(error)

    alone = [made(content) for content in contents + damaged]
    assert sum(isinstance(each, str) for each in alone) == len(damaged)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(made, (contents + damaged) * 4)) == alone * 4


def test_a_png_holds_just_the_pixels() -> None:
    image = smooth(384, 384)
    content = encode(image)
    with Image.open(BytesIO(content)) as opened:
        assert (opened.format, opened.mode, opened.tobytes()) == ("PNG", "RGB", image.tobytes())
        assert set(opened.info) <= {"dpi"}
    assert content == encode(image.copy())
