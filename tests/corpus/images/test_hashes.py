"""Copies of an image have similar hashes, other images do not."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import chain, combinations

import numpy as np
from PIL import Image, ImageEnhance

from stages.core.params import load_params
from stages.corpus.images.hashes import BITS, perceptual_hash, pixel_hash
from stages.corpus.sample.phantoms import draw, sample_phantom
from tests.omnimedvqa import MODALITIES

NEAR = load_params().splits.near_duplicates or 0


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
