"""Exact and perceptual image hashes, to find copies of an image.

The perceptual hash is pHash as in the ImageHash package (Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions"), with 256 bits: images of one modality look so
similar that 64 bits do not separate copies from other images (docs/splits.md has the numbers).
Mirrored, rotated, cropped or shifted copies are not detected.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from PIL import Image
from scipy.fft import dctn

_SIDE: Final = 16
"""Lowest frequencies that are used in each direction."""
BITS: Final = _SIDE**2
_OVERSAMPLING: Final = 4
"""Pixels per frequency in each direction."""
_DIGITS: Final = 6
"""Decimals of a frequency: unrounded, the hash of a uniform image would be rounding errors."""


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of size and RGB values, 64 hex digits: the same in every lossless container."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def perceptual_hash(image: Image.Image) -> str:
    """256 bits as 64 hex digits; re-encoding an image changes few of them.

    A bit is set where one of the 16x16 lowest DCT frequencies of the grey image is above their
    median.
    """
    side = _SIDE * _OVERSAMPLING
    thumbnail = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
    frequencies = np.asarray(dctn(np.asarray(thumbnail, dtype=np.float64), norm="ortho"))
    lowest = np.round(frequencies[:_SIDE, :_SIDE], _DIGITS)
    return np.packbits(lowest > np.median(lowest)).tobytes().hex()
