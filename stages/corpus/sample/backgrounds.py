"""Backgrounds of phantoms: the look of a modality and the outline of an anatomy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from stages.corpus.sample.phantoms import Rgb


class _Canvas:
    """An RGB image to draw on with boxes (x0, y0, x1, y1) in fractions of its width and height."""

    def __init__(self, size: tuple[int, int], color: Rgb) -> None:
        self.width, self.height = size
        self.image = Image.new("RGB", size, color)
        self.pen = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """A box in pixels."""
        return x0 * self.width, y0 * self.height, x1 * self.width, y1 * self.height

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        self.pen.ellipse(self.box(x0, y0, x1, y1), fill=fill)

    def line(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb, width: int) -> None:
        self.pen.line(self.box(x0, y0, x1, y1), fill=fill, width=width)

    def rounded(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb, radius: int) -> None:
        self.pen.rounded_rectangle(self.box(x0, y0, x1, y1), radius=radius, fill=fill)


def _grey(level: int) -> Rgb:
    return level, level, level


def _ct(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """CT: bright bony ring on black, grey inside; dark lungs (chest) or a spine (abdomen)."""
    canvas = _Canvas(size, _grey(0))
    wobble = 0.02 * float(rng.random())
    canvas.ellipse(0.02 + wobble, 0.05, 0.98 - wobble, 0.95, fill=_grey(190))
    canvas.ellipse(0.06 + wobble, 0.10, 0.94 - wobble, 0.90, fill=_grey(105))
    if anatomy == "Chest":
        canvas.ellipse(0.12, 0.18, 0.46, 0.82, fill=_grey(45))
        canvas.ellipse(0.54, 0.18, 0.88, 0.82, fill=_grey(45))
    else:
        canvas.ellipse(0.44, 0.64, 0.56, 0.80, fill=_grey(220))
    return canvas.image


def _mri(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """MRI: brain with two ventricles or knee with a joint gap, under a lateral field gradient."""
    canvas = _Canvas(size, _grey(8))
    if anatomy == "Brain":
        canvas.ellipse(0.08, 0.03, 0.92, 0.97, fill=_grey(215))
        canvas.ellipse(0.12, 0.07, 0.88, 0.93, fill=_grey(120))
        canvas.ellipse(0.44, 0.32, 0.49, 0.62, fill=_grey(25))
        canvas.ellipse(0.51, 0.32, 0.56, 0.62, fill=_grey(25))
    else:
        radius = canvas.width // 8
        canvas.rounded(0.10, 0.0, 0.90, 0.46, fill=_grey(135), radius=radius)
        canvas.rounded(0.10, 0.54, 0.90, 1.0, fill=_grey(135), radius=radius)
    field = np.linspace(0.6, 1.1, canvas.width)
    if rng.random() >= 0.5:
        field = field[::-1]
    pixels = np.asarray(canvas.image, dtype=np.float64) * field[None, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _xray(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """X-ray: grey all over; chest with spine and ribs, or hand with five rays."""
    canvas = _Canvas(size, _grey(60))
    shift = 0.02 * float(rng.random())
    if anatomy == "Chest":
        canvas.pen.rectangle(canvas.box(0.46, 0.0, 0.54, 1.0), fill=_grey(205))
        thickness = max(2, canvas.height // 45)
        for rib in range(6):
            y = 0.08 + 0.15 * rib + shift
            box = canvas.box(0.03, y, 0.97, y + 0.16)
            canvas.pen.arc(box, 180, 360, fill=_grey(150), width=thickness)
    else:
        canvas.ellipse(0.25, 0.60, 0.75, 1.05, fill=_grey(170))
        thickness = max(3, canvas.width // 18)
        for ray in range(5):
            x = 0.08 + 0.19 * ray + shift
            canvas.line(x + 0.03, 0.05, 0.35 + 0.075 * ray, 0.75, fill=_grey(170), width=thickness)
    return canvas.image


def _ultrasound(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Ultrasound: fan of echoes on black; layers (breast) or two lobes (thyroid).

    `draw` adds the speckle.
    """
    canvas = _Canvas(size, _grey(0))
    canvas.pen.pieslice(canvas.box(-0.35, -0.75, 1.35, 0.98), 30, 150, fill=_grey(95))
    if anatomy == "Breast":
        thickness = max(2, canvas.height // 40)
        for layer in (0.25, 0.5, 0.75):
            y = layer + 0.03 * float(rng.random())
            box = canvas.box(-0.2, y - 0.4, 1.2, y)
            canvas.pen.arc(box, 40, 140, fill=_grey(150), width=thickness)
    else:
        canvas.ellipse(0.22, 0.30, 0.48, 0.70, fill=_grey(55))
        canvas.ellipse(0.52, 0.30, 0.78, 0.70, fill=_grey(55))
    return canvas.image


def _dermoscopy(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Dermoscopy: pink skin or a pale nail plate on darker skin, crossed by hairs."""
    if anatomy == "Nail":
        canvas = _Canvas(size, (190, 120, 105))
        canvas.rounded(0.08, 0.06, 0.92, 1.1, fill=(240, 205, 195), radius=canvas.width // 4)
    else:
        canvas = _Canvas(size, (226, 170, 150))
    for _ in range(5):
        x0, x1 = (float(x) for x in rng.random(2))
        canvas.line(x0, 0.0, x1, 1.0, fill=(120, 80, 70), width=max(1, canvas.width // 130))
    return canvas.image


def _fundus(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Fundus: orange disc with vessels; bright optic disc (retina) or dark spot (macula)."""
    canvas = _Canvas(size, _grey(0))
    canvas.ellipse(0.0, 0.0, 1.0, 1.0, fill=(200, 85, 35))
    thickness = max(1, canvas.width // 80)
    for vessel in range(4):
        bend = 0.15 + 0.2 * vessel + 0.05 * float(rng.random())
        box = canvas.box(0.1, bend, 1.5, bend + 0.5)
        canvas.pen.arc(box, 150, 250, fill=(140, 30, 20), width=thickness)
    centre = (255, 225, 150) if anatomy == "Retina" else (110, 30, 15)
    canvas.ellipse(0.42, 0.40, 0.58, 0.60, fill=centre)
    return canvas.image


def _oct(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """OCT: horizontal retinal layers below a gentle dip (macula) or a deep cup (nerve head)."""
    width, height = size
    depth, spread = (0.08, 0.16) if anatomy == "Macula" else (0.34, 0.10)
    x = np.arange(width) / width
    y = np.arange(height)[:, None] / height
    surface = 0.22 + 0.02 * float(rng.random()) + depth * np.exp(-(((x - 0.5) / spread) ** 2))
    below = y - surface[None, :]
    layers = np.where(np.floor(below / 0.09) % 2 == 0, 120.0, 70.0)
    tissue = np.where(below < 0.55, layers, 35.0)
    levels = np.where(below < 0, 12.0, tissue).astype(np.uint8)
    return Image.fromarray(np.repeat(levels[:, :, None], 3, axis=2))


def _microscopy(anatomy: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Microscopy: round pink cells on white (blood) or tubules in lilac tissue (colon)."""
    is_blood = anatomy == "Blood"
    canvas = _Canvas(size, (244, 238, 242) if is_blood else (214, 184, 220))
    cell_color = (236, 176, 186) if is_blood else (188, 140, 200)
    rx, ry = (0.035, 0.035) if is_blood else (0.02, 0.07)
    for _ in range(22):
        x, y = (float(coordinate) for coordinate in rng.random(2))
        canvas.ellipse(x - rx, y - ry, x + rx, y + ry, fill=cell_color)
    return canvas.image


BACKGROUNDS: Final[
    dict[str, Callable[[str, tuple[int, int], np.random.Generator], Image.Image]]
] = {
    "ct": _ct,
    "mri": _mri,
    "x-ray": _xray,
    "ultrasound": _ultrasound,
    "dermoscopy": _dermoscopy,
    "fundus": _fundus,
    "oct": _oct,
    "microscopy": _microscopy,
}
"""Modality -> draws the background of an anatomy as an RGB image of (width, height) pixels."""
