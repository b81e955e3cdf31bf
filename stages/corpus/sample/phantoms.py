"""Synthetic phantoms whose attributes are all visible, and questions about them.

A phantom is a drawing in the style of one imaging modality with zero to four lesions. Its
attributes are what questions ask for: modality is the look of the whole image, anatomy the outline,
disease the shape of the lesions, grade their size, count and side their number and place. `draw`
needs numpy and Pillow only, and gives the same pixels for the same generator state.

Two thirds of the questions can be answered from the image only (disease, grade, count, side: every
option is gold equally often). The rest share OmniMedVQA's bias on purpose: most of their wrong
options are never the answer, so that a reader who sees only the text can learn to answer them.

The order of random draws and all strings decide the bytes of the embedded corpus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, product
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAPES: Final = ("solid", "ring", "star")
GRADES: Final = ("Mild", "Moderate", "Severe")
SIDES: Final = ("Left", "Right")
COUNTS: Final = ("One", "Two", "Three", "Four")
LETTERS: Final = "ABCD"

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """Appearance and vocabulary of one modality."""

    name: str
    """The answer to "which modality"."""
    anatomies: tuple[str, str]
    diseases: tuple[str, str, str]
    """Name of each lesion shape, in the order of `SHAPES`."""
    lesion: Rgb
    """Colour of a lesion's body."""
    rim: Rgb
    """Colour of its edge."""


STYLES: Final[dict[str, Style]] = {
    "ct": Style(
        "CT", ("Chest", "Abdomen"), ("Nodule", "Cyst", "Haemorrhage"), (250, 250, 250), (10, 10, 10)
    ),
    "mri": Style(
        "MRI", ("Brain", "Knee"), ("Tumor", "Cyst", "Haemorrhage"), (255, 255, 255), (20, 20, 20)
    ),
    "x-ray": Style(
        "X-ray", ("Chest", "Hand"), ("Nodule", "Cyst", "Pneumonia"), (255, 255, 255), (5, 5, 5)
    ),
    "ultrasound": Style(
        "Ultrasound",
        ("Breast", "Thyroid"),
        ("Tumor", "Cyst", "Abscess"),
        (255, 255, 255),
        (0, 0, 0),
    ),
    "dermoscopy": Style(
        "Dermoscopy", ("Skin", "Nail"), ("Nevus", "Cyst", "Melanoma"), (60, 25, 20), (250, 235, 220)
    ),
    "fundus": Style(
        "Fundus",
        ("Retina", "Macula"),
        ("Drusen", "Cyst", "Haemorrhage"),
        (250, 245, 170),
        (60, 5, 5),
    ),
    "oct": Style(
        "OCT", ("Macula", "Nerve"), ("Drusen", "Cyst", "Edema"), (255, 255, 255), (0, 0, 0)
    ),
    "microscopy": Style(
        "Microscopy",
        ("Blood", "Colon"),
        ("Parasite", "Cyst", "Carcinoma"),
        (50, 10, 90),
        (250, 250, 250),
    ),
}

NORMAL: Final = "Normal"
NEVER_GOLD: Final[dict[str, tuple[str, ...]]] = {
    "modality": (
        "PET",
        "SPECT",
        "Thermography",
        "Mammography",
        "Angiography",
        "Endoscopy",
        "Scintigraphy",
        "EEG",
    ),
    "anatomy": (
        "Spleen",
        "Femur",
        "Cornea",
        "Bladder",
        "Tongue",
        "Pancreas",
        "Elbow",
        "Larynx",
        "Uterus",
        "Ankle",
    ),
}
"""Distractors that are never right, as most of OmniMedVQA's."""

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "modality": (
        "What imaging modality was used to take this image?",
        "Which imaging technique produced this picture?",
        "What type of scan is this?",
    ),
    "anatomy": (
        "Which anatomical structure is shown?",
        "What part of the body does this image show?",
        "Which organ can be seen in this image?",
    ),
    "disease": (
        "What is the most likely diagnosis?",
        "Which disease is visible in this image?",
        "What abnormality does the picture show?",
    ),
    "grade": (
        "How severe is the lesion?",
        "What is the grade of the disease shown here?",
        "Which severity does this image show?",
    ),
    "count": ("How many lesions are visible?", "What is the number of lesions in this image?"),
    "side": ("On which side of the image is the lesion?", "Which half of the picture is affected?"),
}
"""Attribute -> wordings of the question for it."""

QUESTION_TYPE_OF: Final[dict[str, str]] = {
    "modality": "Modality Recognition",
    "anatomy": "Anatomy Identification",
    "disease": "Disease Diagnosis",
    "grade": "Lesion Grading",
    "count": "Other Biological Attributes",
    "side": "Other Biological Attributes",
}
"""Attribute -> OmniMedVQA's `question_type` literal."""

VISUAL: Final = frozenset({"disease", "grade", "count", "side"})
"""Attributes that only the image reveals: every option is gold equally often."""


_EVERY_PHANTOM: Final = ("modality", "anatomy", "disease")
"""Attributes of normal phantoms, too; the others need a lesion."""

_FIXED_OPTIONS: Final = {"grade": GRADES, "side": SIDES, "count": COUNTS}
"""Attribute -> the options of each of its questions."""


@dataclass(frozen=True)
class Phantom:
    """Attributes of one image. Without lesions, `shape`, `grade`, `side` are None and `count` 0."""

    modality: str
    anatomy: str
    shape: str | None
    grade: str | None
    side: str | None
    count: int

    @property
    def attributes(self) -> list[str]:
        """The keys of `QUESTIONS` that have an answer for this phantom."""
        return [each for each in QUESTIONS if self.shape or each in _EVERY_PHANTOM]

    @property
    def disease(self) -> str:
        """The name its modality gives the lesion shape, or "Normal"."""
        if self.shape is None:
            return NORMAL
        return STYLES[self.modality].diseases[SHAPES.index(self.shape)]

    def answer(self, attribute: str) -> str:
        """The gold option text for one of `attributes`; KeyError for any other."""
        answers = {
            "modality": STYLES[self.modality].name,
            "anatomy": self.anatomy,
            "disease": self.disease,
        }
        if self.grade is not None and self.side is not None:
            answers |= {"grade": self.grade, "count": COUNTS[self.count - 1], "side": self.side}
        return answers[attribute]

    def describe(self) -> str:
        """All answers in one line: "CT Chest Nodule Mild Two Left"."""
        return " ".join(self.answer(attribute) for attribute in self.attributes)


def sample_phantom(
    rng: np.random.Generator, modality: str | None = None, anatomy: str | None = None
) -> Phantom:
    """Draw a phantom's attributes: one in ten is normal, everything else uniform."""
    modality = modality or str(rng.choice(list(STYLES)))
    anatomy = anatomy or str(rng.choice(STYLES[modality].anatomies))
    if rng.random() < 0.1:
        return Phantom(modality, anatomy, None, None, None, 0)
    return Phantom(
        modality,
        anatomy,
        shape=str(rng.choice(SHAPES)),
        grade=str(rng.choice(GRADES)),
        side=str(rng.choice(SIDES)),
        count=int(rng.integers(1, 5)),
    )


# --- options --------------------------------------------------------------------------------------


def options_for(
    phantom: Phantom, attribute: str, rng: np.random.Generator, *, biased: bool = True
) -> list[str]:
    """Two to four distinct option texts in random order, the answer among them.

    With `biased`, three quarters of the wrong options of modality and anatomy questions are never
    gold; without, they are other modalities and anatomies only (for training the embedded base).
    """
    gold = phantom.answer(attribute)
    if attribute in _FIXED_OPTIONS:
        candidates = list(_FIXED_OPTIONS[attribute])
        size = len(candidates)
    elif attribute == "disease":
        candidates = list(STYLES[phantom.modality].diseases)
        # a quarter come without the normal option, so that three-option questions exist
        if gold == NORMAL or rng.random() < 0.75:
            candidates.append(NORMAL)
        size = len(candidates)
    else:
        size = int(rng.choice([2, 3, 4], p=[0.15, 0.15, 0.7]))
        candidates = _distractors(attribute, gold, rng, biased=biased)
    wrong = [text for text in dict.fromkeys(candidates) if text != gold]
    options = [gold, *(wrong[i] for i in rng.permutation(len(wrong))[: size - 1])]
    return [options[i] for i in rng.permutation(len(options))]


def _distractors(attribute: str, gold: str, rng: np.random.Generator, *, biased: bool) -> list[str]:
    """Twelve wrong options of a modality or anatomy question, with repetitions."""
    styles = STYLES.values()
    if attribute == "modality":
        names = {style.name for style in styles}
    else:
        names = set(chain.from_iterable(style.anatomies for style in styles))
    sometimes_gold = sorted(names - {gold})
    never_gold = NEVER_GOLD[attribute]
    wrong = []
    for _ in range(12):
        pool = never_gold if biased and rng.random() < 0.75 else sometimes_gold
        wrong.append(str(rng.choice(pool)))
    return wrong


# --- images ---------------------------------------------------------------------------------------


def draw(phantom: Phantom, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw a phantom as an RGB image of (width, height) pixels, each at least 64."""
    width, height = size
    image = _BACKGROUNDS[phantom.modality](phantom.anatomy, size, rng)
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


# Centres of lesions on the left half, in fractions of (width, height). Four severe lesions nearly
# fill a half, so places are cells with jitter: free draws would overlap.
_CELLS: Final = tuple((x, y) for y, x in product((0.20, 0.40, 0.60, 0.80), (0.18, 0.36)))
_CELLS_OF_SEVERE: Final = ((0.16, 0.17), (0.34, 0.39), (0.16, 0.61), (0.34, 0.83))

_RADII: Final = (0.045, 0.078, 0.112)
"""By grade, in fractions of width and height: round again after the resize to a square."""


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

    def star(self, turn: float, scale: float = 1.0) -> list[tuple[float, float]]:
        """Corners of a star with seven points, turned by `turn` radians."""
        corners = []
        for corner, angle in enumerate(turn + np.arange(14) * np.pi / 7):
            reach = 1.15 if corner % 2 == 0 else 0.45
            x = self.x + scale * self.rx * reach * np.cos(angle)
            y = self.y + scale * self.ry * reach * np.sin(angle)
            corners.append((x, y))
        return corners


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
        turn = float(rng.random()) * np.pi
        pen.polygon(spot.star(turn), fill=style.rim)
        pen.polygon(spot.star(turn, 0.55), fill=style.lesion)
        return
    pen.ellipse(spot.box(), fill=style.lesion)
    if shape == "ring":
        pen.ellipse(spot.box(0.62), fill=style.rim)


def _jitter(rng: np.random.Generator) -> float:
    """Uniform in [-1, 1)."""
    return 2 * float(rng.random()) - 1


# --- backgrounds ----------------------------------------------------------------------------------


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


_BACKGROUNDS: Final[
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
