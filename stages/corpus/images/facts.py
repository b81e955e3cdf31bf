"""Facts of an image's pixels, by which copies, blank, black and washed-out images are found."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from PIL import Image

from stages.corpus.images.hashes import perceptual_hash, pixel_hash

ImageFacts = dict[str, Any]
"""`brightness`, `pixel_hash` and `perceptual_hash`."""

_DIGITS: Final = 2


def image_facts(image: Image.Image) -> ImageFacts:
    """Facts of a resized image, or of a frame of a volume."""
    grey = image.convert("L")
    return {
        "brightness": brightness(grey),
        "pixel_hash": pixel_hash(image),
        "perceptual_hash": perceptual_hash(grey),
    }


def brightness(image: Image.Image) -> list[float]:
    """Mean and standard deviation (contrast) of the grey levels, in levels of 0 to 255."""
    counts = np.array(image.convert("L").histogram())
    levels = np.arange(len(counts))
    pixels = int(counts.sum())
    mean = int(counts @ levels) / pixels
    variance = float(counts @ (levels - mean) ** 2) / pixels
    return [round(mean, _DIGITS), round(variance**0.5, _DIGITS)]
