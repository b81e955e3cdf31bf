"""Copies of an image have near hashes, other images do not."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageEnhance

from stages.core.params import load_params
from stages.corpus.images.hashes import BITS, perceptual_hash, pixel_hash
from stages.corpus.sample.phantoms import draw, sample_phantom
from stages.taxonomy import MODALITIES

NEAR = load_params().splits.near_duplicates or 0


def phantoms(modality: str, number: int) -> list[Image.Image]:
    rngs = [np.random.default_rng([11, index]) for index in range(number)]
    drawn = [draw(sample_phantom(rng, modality), (120, 140), rng) for rng in rngs]
    return [
        image.resize((384, 384), Image.Resampling.BICUBIC) for image in drawn
    ]  # as those of the sample are


def bits_apart(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_nearly_all_copies_are_nearer_than_the_threshold_and_no_other_images_are() -> None:
    images = [image for modality in MODALITIES for image in phantoms(modality, 8)]
    hashes = [perceptual_hash(image) for image in images]
    found: list[bool] = []
    for image, own in zip(images, hashes, strict=True):
        smaller = image.resize((200, 200), Image.Resampling.BILINEAR).resize(
            image.size, Image.Resampling.BICUBIC
        )
        copies = (as_jpeg(image, 75), smaller, ImageEnhance.Contrast(image).enhance(0.9))
        found += [bits_apart(own, perceptual_hash(copy)) <= NEAR for copy in copies]
        assert perceptual_hash(image.convert("L")) == own
    assert np.mean(found) >= 0.95
    assert min(bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > NEAR


def test_an_even_image_has_a_hash_without_noise_in_it() -> None:
    assert (
        len(
            {perceptual_hash(Image.new("RGB", (384, 384), (level,) * 3)) for level in range(1, 256)}
        )
        == 1
    )


def test_pixel_hashes_tell_pixels_and_sizes_apart_and_not_modes() -> None:
    grey = Image.new("L", (8, 6), 90)
    assert pixel_hash(grey) == pixel_hash(grey.convert("RGB"))
    assert pixel_hash(grey) != pixel_hash(Image.new("L", (6, 8), 90))
    assert pixel_hash(grey) != pixel_hash(Image.new("L", (8, 6), 91))
    assert len(pixel_hash(grey)) == len(perceptual_hash(grey)) == BITS // 4
