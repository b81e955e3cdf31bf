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
from numpy.typing import NDArray
from PIL import Image

_SIDE: Final = 16
"""Lowest frequencies that are used in each direction."""
BITS: Final = _SIDE**2
_OVERSAMPLING: Final = 4
"""Pixels per frequency in each direction."""
_DIGITS: Final = 6
"""Decimals of a frequency: unrounded, the hash of a uniform image would be rounding errors."""


def _lowest_cosines(count: int, samples: int) -> NDArray[np.float64]:
    """(count, samples): rows of the orthonormal DCT-II matrix, those of the lowest frequencies.

    `scipy.fft` computes the same and all other frequencies, but takes as long to import as all
    else that stage resize needs.
    """
    angles = np.outer(np.arange(count), 2 * np.arange(samples) + 1) * (np.pi / (2 * samples))
    cosines: NDArray[np.float64] = np.cos(angles) * np.sqrt(2 / samples)
    cosines[0] /= np.sqrt(2)
    return cosines


_COSINES: Final = _lowest_cosines(_SIDE, _SIDE * _OVERSAMPLING)


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
    levels = np.asarray(thumbnail, dtype=np.float64)
    lowest = np.round(_COSINES @ levels @ _COSINES.T, _DIGITS)
    # as np.median, which imports numpy.ma, does for an even number of values
    middle = slice(BITS // 2 - 1, BITS // 2 + 1)
    median = np.sort(lowest, axis=None)[middle].mean()
    return np.packbits(lowest > median).tobytes().hex()
