"""Copies of an image have similar hashes, other images do not."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import chain, combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from stages.core.params import load_params
from stages.corpus.images.facts import brightness
from stages.corpus.images.hashes import BITS, perceptual_hash, pixel_hash
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.phantoms import sample_phantom
from tests.omnimedvqa import MODALITIES

NEAR = load_params().splits.near_duplicates or 0

ROWS, COLUMNS = np.indices((384, 384))
RECORDED = {
    "disc": (
        30 + 200 * ((ROWS - 150) ** 2 + (COLUMNS - 230) ** 2 < 90**2),
        [64.5, 75.56],
        "9a0f5cccb4627c3e73f4c0247a0c496aba2a759149ed0edd5b91e9951ec8dbbb",
        "98e598e7631a635a94a5a4a164219ad698d67b3b9b199b5865256321fb7f64c6",
    ),
    "checks": (
        255 * ((ROWS // 24 + COLUMNS // 48) % 2),
        [127.5, 127.5],
        "cbb73baf6ceb845971eb75174a70686cab3877d89985443c467ce96406963e75",
        "8000005500000055000000550000005500000055000000550000005500000055",
    ),
    "rings": (
        (ROWS**2 + 3 * COLUMNS**2) // 2000 % 256,
        [94.15, 67.23],
        "c5e36fb968182076f08c52a706916a70ae698dea423445f7144f567f5850139e",
        "a5552aaad5552aadd56a2b55daaa2555d6aa2a55552b2b55d2aa3555caaa2955",
    ),
}
"""Grey levels, and what records of earlier versions say of them."""


def phantoms(modality: str, count: int) -> Iterator[Image.Image]:
    """Phantoms like those of the sample, resized to the default size."""
    for index in range(count):
        rng = np.random.default_rng([11, index])
        phantom = draw(sample_phantom(rng, modality), (120, 140), rng)
        yield phantom.resize((384, 384), Image.Resampling.BICUBIC)


def hamming_distance(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_the_threshold_separates_nearly_all_copies_from_other_images() -> None:
    images = list(chain.from_iterable(phantoms(modality, 8) for modality in MODALITIES))
    hashes = [perceptual_hash(image) for image in images]
    detected: list[bool] = []
    for image, own in zip(images, hashes, strict=True):
        smaller = image.resize((200, 200), Image.Resampling.BILINEAR).resize(
            image.size, Image.Resampling.BICUBIC
        )
        copies = (as_jpeg(image, 75), smaller, ImageEnhance.Contrast(image).enhance(0.9))
        detected += [hamming_distance(own, perceptual_hash(copy)) <= NEAR for copy in copies]
        assert perceptual_hash(image.convert("L")) == own
    assert np.mean(detected) >= 0.95
    assert min(hamming_distance(a, b) for a, b in combinations(hashes, 2)) > NEAR


def test_uniform_images_of_all_levels_have_one_hash() -> None:
    images = (Image.new("RGB", (384, 384), (level,) * 3) for level in range(1, 256))
    assert len({perceptual_hash(image) for image in images}) == 1


def test_pixel_hashes_depend_on_pixels_and_size_but_not_on_the_mode() -> None:
    grey = Image.new("L", (8, 6), 90)
    assert pixel_hash(grey) == pixel_hash(grey.convert("RGB"))
    assert pixel_hash(grey) != pixel_hash(Image.new("L", (6, 8), 90))
    assert pixel_hash(grey) != pixel_hash(Image.new("L", (8, 6), 91))
    assert len(pixel_hash(grey)) == len(perceptual_hash(grey)) == BITS // 4


@pytest.mark.parametrize("name", RECORDED)
def test_values_are_those_in_records_of_earlier_versions(name: str) -> None:
    levels, recorded_brightness, recorded_pixels, recorded_look = RECORDED[name]
    image = Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    assert brightness(image) == brightness(image.convert("L")) == recorded_brightness
    assert pixel_hash(image) == recorded_pixels
    assert perceptual_hash(image) == perceptual_hash(image.convert("L")) == recorded_look


def noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (384, 384), dtype=np.uint8)


def test_the_lowest_frequencies_are_scipys() -> None:
    images = [Image.fromarray(noise(seed)) for seed in range(20)]
    images += chain.from_iterable(phantoms(modality, 4) for modality in MODALITIES)
    images += [Image.fromarray(levels.astype(np.uint8)) for levels, *_ in RECORDED.values()]
    # mirrored halves have frequencies that are zero but for rounding
    images += [Image.fromarray(np.hstack([noise(7)[:, :192], noise(7)[:, 191::-1]]))]
    for image in images:
        thumbnail = image.convert("L").resize((64, 64), Image.Resampling.LANCZOS)
        frequencies = dctn(np.asarray(thumbnail, dtype=np.float64), norm="ortho")
        lowest = np.round(np.asarray(frequencies)[:16, :16], 6)
        expected = np.packbits(lowest > np.median(lowest)).tobytes().hex()
        assert perceptual_hash(image) == expected
