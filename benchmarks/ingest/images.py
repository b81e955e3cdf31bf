"""Generated images: smooth structures with little noise, which cost codecs as much as scans do."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFilter

SIZES: Final = (512, 2048)
"""Least and most pixels a side."""


def smooth(
    width: int, height: int, rng: np.random.Generator, noise: float, *, grey: bool
) -> Image.Image:
    """Blurred patches and a bright disc with Gaussian noise of `noise` grey levels."""
    channels = 1 if grey else 3
    coarse = rng.integers(20, 230, (9, 9, channels), dtype=np.uint8)
    canvas = Image.fromarray(coarse.squeeze(-1) if grey else coarse).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    disc = Image.new("L", (64, 64))
    disc.paste(255, (16, 16, 48, 48))
    where = (
        disc.filter(ImageFilter.GaussianBlur(3))
        .rotate(float(rng.integers(90)))
        .resize((width, height), Image.Resampling.BILINEAR)
    )
    canvas.paste(240 if grey else (240, 200, 180), (0, 0), where)
    pixels = np.asarray(canvas, dtype=np.float32)
    # noise drawn once and repeated: drawing it takes longer than all the rest
    tile = rng.standard_normal((256, 256, *((1,) * (not grey))), dtype=np.float32) * noise
    tiles = np.tile(tile, (-(-height // 256), -(-width // 256), *((1,) * (not grey))))[
        :height, :width
    ]
    return Image.fromarray(np.clip(pixels + tiles, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """The bytes of an image file of a kind Pillow knows."""
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
