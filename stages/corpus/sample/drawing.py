"""Draw phantoms: a background, lesions, then blur and noise.

The same generator state gives the same pixels; the order of random draws decides them.
"""

from __future__ import annotations

from itertools import product
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stages.corpus.sample.backgrounds import BACKGROUNDS
from stages.corpus.sample.phantoms import GRADES, STYLES, Phantom, Style

# Centres of lesions on the left half, in fractions of (width, height). Four severe lesions nearly
# fill a half, so places are cells with jitter: free draws would overlap.
_CELLS: Final = tuple((x, y) for y, x in product((0.20, 0.40, 0.60, 0.80), (0.18, 0.36)))
_CELLS_OF_SEVERE: Final = ((0.16, 0.17), (0.34, 0.39), (0.16, 0.61), (0.34, 0.83))

_RADII: Final = (0.045, 0.078, 0.112)
"""By grade, in fractions of width and height: round again after the resize to a square."""


def draw(phantom: Phantom, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw a phantom as an RGB image of (width, height) pixels, each at least 64."""
    width, height = size
    image = BACKGROUNDS[phantom.modality](phantom.anatomy, size, rng)
    if phantom.shape:
        _draw_lesions(image, phantom, rng)
    blurred = image.filter(ImageFilter.GaussianBlur(0.5 + 0.4 * float(rng.random())))
    pixels = np.asarray(blurred, dtype=np.float64)
    gain = 1 + 0.08 * rng.standard_normal()
    offset = 5 * rng.standard_normal()
    if phantom.modality == "ultrasound":  # speckle multiplies, noise adds
        pixels = pixels * (0.55 + 0.6 * rng.random((height, width, 1)))
    pixels = gain * pixels + offset + 4 * rng.standard_normal((height, width, 1))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _draw_lesions(image: Image.Image, phantom: Phantom, rng: np.random.Generator) -> None:
    """Paint `count` non-overlapping lesions of one shape and size into one half of the image."""
    width, height = image.size
    pen = ImageDraw.Draw(image)
    radius = _RADII[GRADES.index(phantom.grade or "")] * (1 + 0.08 * _jitter(rng))
    cells = _CELLS_OF_SEVERE if radius > 0.09 else _CELLS
    chosen = rng.permutation(len(cells))[: phantom.count]
    for index in sorted(int(i) for i in chosen):
        cell_x, cell_y = cells[index]
        x = cell_x + 0.02 * _jitter(rng)
        y = cell_y + 0.015 * _jitter(rng)
        if phantom.side == "Right":
            x = 1 - x
        spot = _Spot(x * width, y * height, radius * width, radius * height)
        _draw_lesion(pen, phantom.shape or "", spot, STYLES[phantom.modality], rng)


def _draw_lesion(
    pen: ImageDraw.ImageDraw, shape: str, spot: _Spot, style: Style, rng: np.random.Generator
) -> None:
    if shape == "star":
        rotation = float(rng.random()) * np.pi
        pen.polygon(spot.star(rotation), fill=style.rim)
        pen.polygon(spot.star(rotation, 0.55), fill=style.lesion)
        return
    pen.ellipse(spot.box(), fill=style.lesion)
    if shape == "ring":
        pen.ellipse(spot.box(0.62), fill=style.rim)


class _Spot(NamedTuple):
    """Centre and radii of a lesion, in pixels."""

    x: float
    y: float
    rx: float
    ry: float

    def box(self, scale: float = 1.0) -> tuple[float, float, float, float]:
        """Bounding box of the ellipse with its radii times `scale`."""
        dx = scale * self.rx
        dy = scale * self.ry
        return self.x - dx, self.y - dy, self.x + dx, self.y + dy

    def star(self, rotation: float, scale: float = 1.0) -> list[tuple[float, float]]:
        """Corners of a star with seven points, rotated by `rotation` radians."""
        corners = []
        for corner, angle in enumerate(rotation + np.arange(14) * np.pi / 7):
            reach = 1.15 if corner % 2 == 0 else 0.45
            x = self.x + scale * self.rx * reach * np.cos(angle)
            y = self.y + scale * self.ry * reach * np.sin(angle)
            corners.append((x, y))
        return corners


def _jitter(rng: np.random.Generator) -> float:
    """Uniform in [-1, 1)."""
    return 2 * float(rng.random()) - 1
