"""Facts of an image's pixels, by which copies and blank images are found."""

from __future__ import annotations

from typing import Any

from PIL import Image

from stages.corpus.images.brightness import brightness
from stages.corpus.images.hashes import perceptual_hash, pixel_hash

ImageFacts = dict[str, Any]
"""`brightness`, `pixel_hash` and `perceptual_hash`."""


def image_facts(image: Image.Image) -> ImageFacts:
    """Facts of a resized image, or of a frame of a volume."""
    grey = image.convert("L")
    return {
        "brightness": brightness(grey),
        "pixel_hash": pixel_hash(image),
        "perceptual_hash": perceptual_hash(grey),
    }
