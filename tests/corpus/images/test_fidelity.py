"""Fidelity of the default settings to Pillow's bicubic, and damage that libjpeg only warns of."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stages.core.params import load_params
from stages.corpus.images import decoding, pillow_images
from stages.corpus.images.decoding import ImageError, decode
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.phantoms import sample_phantom
from tests.conftest import ROOT
from tests.omnimedvqa import MODALITIES

DEFAULT = load_params(ROOT / "params.yaml").resize
SIZE = (700, 560)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def lines() -> Image.Image:
    """Thin white lines on black, like annotations: where resizing methods differ most."""
    image = Image.new("RGB", SIZE)
    rng = np.random.default_rng(3)
    for _ in range(200):
        ImageDraw.Draw(image).line(
            [int(rng.integers(side)) for side in (*SIZE, *SIZE)], fill=(255, 255, 255), width=2
        )
    return image


def noise(levels: int) -> Image.Image:
    values = np.random.default_rng(levels).integers(0, levels, (SIZE[1], SIZE[0], 3))
    return Image.fromarray((values * (255 // (levels - 1))).astype(np.uint8))


CONTENT = {"thin lines": lines(), "black and white noise": noise(2), "noise": noise(256)}


def pillow_error(content: bytes) -> float:
    """Mean difference in grey levels from Pillow's result at full resolution."""
    size = (DEFAULT.size, DEFAULT.size)
    with Image.open(BytesIO(content)) as opened:
        expected = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    levels = np.asarray(decode(content, DEFAULT).image, dtype=float)
    return float(np.abs(levels - np.asarray(expected)).mean())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", CONTENT)
def test_any_content_is_within_half_a_grey_level_of_pillow(name: str, kind: str) -> None:
    assert pillow_error(saved(CONTENT[name], kind)) < 0.5


@pytest.mark.parametrize("modality", MODALITIES)
def test_phantoms_are_within_a_quarter_of_a_grey_level_of_pillow(modality: str) -> None:
    rng = np.random.default_rng(7)
    phantom = draw(sample_phantom(rng, modality), (640, 480), rng)
    assert pillow_error(saved(phantom, "JPEG", quality=90)) < 0.25


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("name", CONTENT)
def test_grey_images_equal_pillows(name: str, kind: str) -> None:
    assert pillow_error(saved(CONTENT[name].convert("L"), kind)) == 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"progressive": True}, {"restart_marker_blocks": 50}],
    ids=["plain", "progressive", "restarts"],
)
def test_a_truncated_jpeg_with_an_end_marker_is_refused(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    whole = saved(draw(sample_phantom(rng, "fundus"), SIZE, rng), "JPEG", quality=90, **settings)
    for tenths in range(2, 10):
        truncated = whole[: len(whole) * tenths // 10] + b"\xff\xd9"
        with Image.open(BytesIO(truncated)) as opened:
            opened.load()  # Pillow accepts it, grey where nothing is stored
        with pytest.raises(ImageError, match="truncated"):
            decode(truncated, DEFAULT)


@pytest.mark.parametrize(
    ("settings", "percent"),
    [({"progressive": True}, 26), ({"progressive": True}, 56), ({"restart_marker_blocks": 50}, 17)],
)
def test_a_jpeg_with_missing_bytes_inside_is_refused_where_its_coding_shows_it(
    settings: dict[str, Any], percent: int
) -> None:
    rng = np.random.default_rng(0)
    whole = saved(draw(sample_phantom(rng, "fundus"), SIZE, rng), "JPEG", quality=90, **settings)
    at = len(whole) * percent // 100
    assert pillow_error(whole) < 0.5
    with pytest.raises(ImageError, match="VipsJpeg: .*(bad Huffman code|extraneous bytes)"):
        decode(whole[:at] + whole[at + 400 :], DEFAULT)


@pytest.mark.parametrize("package", ["pillow", "libvips", "pydicom"])
def test_the_decoder_string_names_each_package(package: str) -> None:
    assert f"{package} " in decoding.DECODER


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.float32)])
@pytest.mark.parametrize("deep_grey", ["range", "percentiles", "depth"])
def test_deep_grey_scaled_at_once_equals_deep_grey_scaled_in_strips(
    kind: str, dtype: type, deep_grey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: np.ndarray[Any, Any] = (
        np.random.default_rng(2).integers(100, 5000, (130, 90)).astype(dtype)
    )
    settings = DEFAULT.model_copy(update={"deep_grey": deep_grey, "size": 64})
    results = []
    for rows in (7, 10_000):
        monkeypatch.setattr(pillow_images, "_STRIP_ROWS", rows)
        results.append(decode(saved(Image.fromarray(levels), kind), settings).image.tobytes())
    assert results[0] == results[1]
