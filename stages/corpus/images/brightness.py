"""How bright an image is and how much that varies over it: what tells blank, black and washed-out
images from others.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_DIGITS = 2


def brightness(image: Image.Image) -> list[float]:
    """Mean and standard deviation of the grey levels, both in levels of 0 to 255; the second is the
    image's contrast.
    """
    counts = np.array(image.convert("L").histogram())
    levels = np.arange(len(counts))
    number = int(counts.sum())
    mean = int(counts @ levels) / number
    variance = float(counts @ (levels - mean) ** 2) / number
    return [round(mean, _DIGITS), round(variance**0.5, _DIGITS)]
