"""Generated images: smooth structures with a little noise, as costly for codecs as scans."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFilter

SIZES: Final = (512, 2048)
"""Minimum and maximum side in pixels."""


def smooth(
    width: int, height: int, rng: np.random.Generator, noise: float, *, grey: bool
) -> Image.Image:
    """Blurred patches and a bright disc with Gaussian noise of `noise` grey levels."""
    channels = 1 if grey else 3
    coarse = rng.integers(20, 230, (9, 9, channels), dtype=np.uint8)
    patches = Image.fromarray(coarse.squeeze(-1) if grey else coarse)
    canvas = patches.resize((width, height), Image.Resampling.BICUBIC)
    disc = Image.new("L", (64, 64))
    disc.paste(255, (16, 16, 48, 48))
    blurred = disc.filter(ImageFilter.GaussianBlur(3)).rotate(float(rng.integers(90)))
    mask = blurred.resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste(240 if grey else (240, 200, 180), (0, 0), mask)
    pixels = np.asarray(canvas, dtype=np.float32)
    # repeat one tile of noise: sampling it all takes longer than the rest
    channel_axis = () if grey else (1,)
    tile = rng.standard_normal((256, 256, *channel_axis), dtype=np.float32) * noise
    repeats = (-(-height // 256), -(-width // 256), *channel_axis)
    tiles = np.tile(tile, repeats)[:height, :width]
    return Image.fromarray(np.clip(pixels + tiles, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """The bytes of an image file in a format of Pillow."""
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
