"""The default is Pillow's bicubic within a grey level on every kind of content, and damage that
libjpeg only warns of is found.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stages.core.params import load_params
from stages.corpus.images import decoding as images
from stages.corpus.images.decoding import ImageError, decode
from stages.corpus.sample.phantoms import draw, sample_phantom
from stages.taxonomy import MODALITIES
from tests.conftest import ROOT

DEFAULT = load_params(ROOT / "params.yaml").resize
SIZE = (700, 560)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def lines() -> Image.Image:
    """Thin white lines on black, as annotations are: what differs most between ways to resize."""
    image = Image.new("RGB", SIZE)
    rng = np.random.default_rng(3)
    for _ in range(200):
        ImageDraw.Draw(image).line(
            [int(rng.integers(side)) for side in (*SIZE, *SIZE)], fill=(255, 255, 255), width=2
        )
    return image


def noise(levels: int) -> Image.Image:
    drawn = np.random.default_rng(levels).integers(0, levels, (SIZE[1], SIZE[0], 3))
    return Image.fromarray((drawn * (255 // (levels - 1))).astype(np.uint8))


CONTENT = {"thin lines": lines(), "black and white noise": noise(2), "noise": noise(256)}


def off(content: bytes) -> float:
    """Grey levels, on average, between the image and what Pillow makes of it at full resolution."""
    with Image.open(BytesIO(content)) as opened:
        wanted = opened.convert("RGB").resize(
            (DEFAULT.size, DEFAULT.size), Image.Resampling.BICUBIC
        )
    return float(
        np.abs(np.asarray(decode(content, DEFAULT).image, dtype=float) - np.asarray(wanted)).mean()
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", CONTENT)
def test_no_content_is_off_by_a_level(name: str, kind: str) -> None:
    assert off(saved(CONTENT[name], kind)) < 0.5


@pytest.mark.parametrize("modality", MODALITIES)
def test_phantoms_are_off_by_a_fraction_of_a_level(modality: str) -> None:
    rng = np.random.default_rng(7)
    phantom = draw(sample_phantom(rng, modality), (640, 480), rng)
    assert off(saved(phantom, "JPEG", quality=90)) < 0.25


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("name", CONTENT)
def test_grey_is_not_off_at_all(name: str, kind: str) -> None:
    assert off(saved(CONTENT[name].convert("L"), kind)) == 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"progressive": True}, {"restart_marker_blocks": 50}],
    ids=["plain", "progressive", "restarts"],
)
def test_a_jpeg_cut_short_is_found_though_it_has_an_end(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    whole = saved(draw(sample_phantom(rng, "fundus"), SIZE, rng), "JPEG", quality=90, **settings)
    for tenths in range(2, 10):
        cut = whole[: len(whole) * tenths // 10] + b"\xff\xd9"
        with Image.open(BytesIO(cut)) as opened:
            opened.load()  # Pillow takes it, grey where nothing was stored
        with pytest.raises(ImageError, match="truncated or damaged"):
            decode(cut, DEFAULT)


@pytest.mark.parametrize(
    ("settings", "percent"),
    [({"progressive": True}, 26), ({"progressive": True}, 56), ({"restart_marker_blocks": 50}, 17)],
)
def test_a_jpeg_that_lacks_bytes_inside_is_refused_where_its_coding_tells(
    settings: dict[str, Any], percent: int
) -> None:
    rng = np.random.default_rng(0)
    whole = saved(draw(sample_phantom(rng, "fundus"), SIZE, rng), "JPEG", quality=90, **settings)
    at = len(whole) * percent // 100
    assert off(whole) < 0.5
    with pytest.raises(
        ImageError, match="truncated or damaged: VipsJpeg: .*(bad Huffman code|extraneous bytes)"
    ):
        decode(whole[:at] + whole[at + 400 :], DEFAULT)


@pytest.mark.parametrize("package", ["pillow", "libvips", "pydicom"])
def test_what_decodes_is_named_with_its_version(package: str) -> None:
    assert f"{package} " in images.DECODER


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.float32)])
@pytest.mark.parametrize("how", ["range", "percentiles", "depth"])
def test_deep_grey_is_scaled_the_same_at_once_and_in_strips(
    kind: str, dtype: type, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: np.ndarray[Any, Any] = (
        np.random.default_rng(2).integers(100, 5000, (130, 90)).astype(dtype)
    )
    settings = DEFAULT.model_copy(update={"deep_grey": how, "size": 64})
    found = []
    for rows in (7, 10_000):
        monkeypatch.setattr(images, "_ROWS", rows)
        found.append(decode(saved(Image.fromarray(levels), kind), settings).image.tobytes())
    assert found[0] == found[1]
