"""Which images are copies of one another: by their pixels, or by a hash that re-encoding hardly
changes.

The perceptual hash is pHash as the ImageHash package has it (Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions"), with 256 bits: on images of one modality, which
all look alike, 64 bits do not tell copies from others (docs/splits.md has the numbers). A copy that
was mirrored, turned, cropped or shifted is not found.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from PIL import Image
from scipy.fft import dctn

_SIDE: Final = 16
"""Frequencies kept in each direction."""
BITS: Final = _SIDE**2
_FINENESS: Final = 4
"""Pixels for each frequency kept, in each direction."""
_DIGITS: Final = 6
"""Decimals of a frequency that count: without a limit, the hash of an even image would be rounding
errors.
"""


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of size and RGB values, 64 hex digits: equal for byte-identical files and for the
    same image in another container.
    """
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def perceptual_hash(image: Image.Image) -> str:
    """256 bits as 64 hex digits: is each of the 16x16 lowest frequencies of the grey image above
    their median.
    """
    side = _SIDE * _FINENESS
    grey = np.asarray(
        image.convert("L").resize((side, side), Image.Resampling.LANCZOS), dtype=np.float64
    )
    low = np.round(np.asarray(dctn(grey, norm="ortho"))[:_SIDE, :_SIDE], _DIGITS)
    return np.packbits(low > np.median(low)).tobytes().hex()
