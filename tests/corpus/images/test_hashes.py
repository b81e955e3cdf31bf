"""Copies of a picture have near hashes, other pictures have not; near hashes are found, all of them and no others."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from stages.core.params import load_params
from stages.corpus.images.hashes import BITS, near_pairs, perceptual_hash, pixel_hash
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


def linked(hashes: list[str], distance: int) -> list[set[int]]:
    """The groups that near_pairs links, by brute force over its pairs."""
    groups = [{index} for index in range(len(hashes))]
    for first, second in (pair for found in near_pairs(hashes, distance) for pair in found.tolist()):
        union = groups[first] | groups[second]
        for index in union:
            groups[index] = union
    return groups


@st.composite
def clustered(draw_: st.DrawFn) -> list[str]:
    """Few centres, and hashes some bits away from them."""
    centres = draw_(st.lists(st.integers(0, 2**BITS - 1), min_size=1, max_size=3))
    hashes = []
    for _ in range(draw_(st.integers(1, 12))):
        bits = draw_(st.sampled_from(centres))
        for position in draw_(st.lists(st.integers(0, BITS - 1), max_size=30)):
            bits ^= 1 << position
        hashes.append(f"{bits:0{BITS // 4}x}")
    return hashes


@settings(deadline=None, max_examples=60)
@given(clustered(), st.sampled_from([0, 1, 7, 10, 24]))
def test_all_near_hashes_are_linked_and_pairs_are_near(hashes: list[str], distance: int) -> None:
    groups = linked(hashes, distance)
    for i, first in enumerate(hashes):
        for j, second in enumerate(hashes):
            if bits_apart(first, second) <= distance:
                assert j in groups[i]
    for found in near_pairs(hashes, distance):
        assert all(bits_apart(hashes[i], hashes[j]) <= distance for i, j in found.tolist())


def test_no_hashes_have_no_pairs() -> None:
    assert sum(len(found) for found in near_pairs([], 10)) == 0
