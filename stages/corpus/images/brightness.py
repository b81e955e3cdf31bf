"""Brightness and contrast of an image, to detect blank, black and washed-out ones."""

from __future__ import annotations

import numpy as np
from PIL import Image

_DIGITS = 2


def brightness(image: Image.Image) -> list[float]:
    """Mean and standard deviation (contrast) of the grey levels, in levels of 0 to 255."""
    counts = np.array(image.convert("L").histogram())
    levels = np.arange(len(counts))
    pixels = int(counts.sum())
    mean = int(counts @ levels) / pixels
    variance = float(counts @ (levels - mean) ** 2) / pixels
    return [round(mean, _DIGITS), round(variance**0.5, _DIGITS)]
