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
    return [picture.resize((384, 384), Image.Resampling.BICUBIC) for picture in drawn]  # as those of the sample are


def bits_apart(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_nearly_all_copies_are_nearer_than_the_threshold_and_no_other_pictures_are() -> None:
    pictures = [picture for modality in MODALITIES for picture in phantoms(modality, 8)]
    hashes = [perceptual_hash(picture) for picture in pictures]
    found: list[bool] = []
    for picture, own in zip(pictures, hashes, strict=True):
        smaller = picture.resize((200, 200), Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BICUBIC)
        copies = (as_jpeg(picture, 75), smaller, ImageEnhance.Contrast(picture).enhance(0.9))
        found += [bits_apart(own, perceptual_hash(copy)) <= NEAR for copy in copies]
        assert perceptual_hash(picture.convert("L")) == own
    assert np.mean(found) >= 0.95
    assert min(bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > NEAR


def test_an_even_picture_has_a_hash_without_noise_in_it() -> None:
    assert len({perceptual_hash(Image.new("RGB", (384, 384), (level,) * 3)) for level in range(1, 256)}) == 1


def test_pixel_hashes_tell_pixels_and_sizes_apart_and_not_modes() -> None:
    grey = Image.new("L", (8, 6), 90)
    assert pixel_hash(grey) == pixel_hash(grey.convert("RGB"))
    assert pixel_hash(grey) != pixel_hash(Image.new("L", (6, 8), 90))
    assert pixel_hash(grey) != pixel_hash(Image.new("L", (8, 6), 91))
    assert len(pixel_hash(grey)) == len(perceptual_hash(grey)) == BITS // 4
