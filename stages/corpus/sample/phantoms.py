"""Synthetic phantoms whose facts are all visible, and the questions about them.

A phantom is a drawing in the style of one imaging modality with zero to four lesions. What a
question may ask for is what was drawn: the modality is the look of the whole image, the anatomy its
outline, the disease the lesions' shape, the grade their size, and count and side their number and
place. `draw` needs numpy and Pillow only, and gives the same pixels for the same generator state.

Two thirds of the questions can be answered from the image only (diagnosis, grade, count, side:
every option is gold equally often). The rest share OmniMedVQA's bias on purpose: their wrong
options come mostly from words that are never the answer, so a reader who has only seen the text can
learn to answer them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, product
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stages.taxonomy import MODALITIES

SHAPES: Final = ("solid", "ring", "star")
GRADES: Final = ("Mild", "Moderate", "Severe")
SIDES: Final = ("Left", "Right")
COUNTS: Final = ("One", "Two", "Three", "Four")
LETTERS: Final = "ABCD"


@dataclass(frozen=True)
class Style:
    """How one modality looks and what it calls things.

    `name` is the answer to "which modality"; `anatomies` the two outlines it has; `diseases` the
    name of each lesion shape, in the order of `SHAPES`; `lesion` the RGB of a lesion's body and
    `rim` of its edge.
    """

    name: str
    anatomies: tuple[str, str]
    diseases: tuple[str, str, str]
    lesion: tuple[int, int, int]
    rim: tuple[int, int, int]


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
"""Options that are offered but never right, as most of OmniMedVQA's distractors are."""

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
"""What is asked for -> its wordings."""

ASKED_TYPE: Final[dict[str, str]] = {
    "modality": "Modality Recognition",
    "anatomy": "Anatomy Identification",
    "disease": "Disease Diagnosis",
    "grade": "Lesion Grading",
    "count": "Other Biological Attributes",
    "side": "Other Biological Attributes",
}
"""What is asked for -> OmniMedVQA's `question_type` literal."""

VISUAL: Final = frozenset({"disease", "grade", "count", "side"})
"""What only the image tells: options of these questions are gold equally often."""


@dataclass(frozen=True)
class Phantom:
    """What is in one image. A normal phantom has `shape`, `grade` and `side` None and `count` 0."""

    modality: str
    anatomy: str
    shape: str | None
    grade: str | None
    side: str | None
    count: int

    @property
    def disease(self) -> str:
        """The name its modality gives the lesion shape, or "Normal"."""
        return (
            NORMAL
            if self.shape is None
            else STYLES[self.modality].diseases[SHAPES.index(self.shape)]
        )

    def answer(self, asked: str) -> str:
        """The gold option text for a key of `QUESTIONS`.

        KeyError if it does not apply to this phantom.
        """
        answers = {
            "modality": STYLES[self.modality].name,
            "anatomy": self.anatomy,
            "disease": self.disease,
        }
        if self.grade is not None and self.side is not None:
            answers |= {"grade": self.grade, "count": COUNTS[self.count - 1], "side": self.side}
        return answers[asked]

    def describe(self) -> str:
        """Everything drawn, in one line: "CT Chest Nodule Mild Two Left"."""
        asked = ("modality", "anatomy", "disease") + (
            ("grade", "count", "side") if self.shape else ()
        )
        return " ".join(self.answer(item) for item in asked)


def sample_phantom(
    rng: np.random.Generator, modality: str | None = None, anatomy: str | None = None
) -> Phantom:
    """Draw a phantom's facts: one in ten is normal, everything else uniform."""
    modality = modality or str(rng.choice(list(MODALITIES)))
    anatomy = anatomy or str(rng.choice(STYLES[modality].anatomies))
    if rng.random() < 0.1:
        return Phantom(modality, anatomy, None, None, None, 0)
    return Phantom(
        modality,
        anatomy,
        str(rng.choice(SHAPES)),
        str(rng.choice(GRADES)),
        str(rng.choice(SIDES)),
        int(rng.integers(1, 5)),
    )


# --- questions
# --------------------------------------------------------------------------------------------------


def options_for(
    phantom: Phantom, asked: str, rng: np.random.Generator, *, biased: bool = True
) -> list[str]:
    """Two to four distinct option texts in random order, the answer among them.

    With `biased`, three quarters of the wrong options of modality and anatomy questions are words
    that are never gold; without, they are other modalities and anatomies only (what the embedded
    base is trained on).
    """
    gold = phantom.answer(asked)
    style = STYLES[phantom.modality]
    if asked == "grade":
        wrong, size = list(GRADES), 3
    elif asked == "side":
        wrong, size = list(SIDES), 2
    elif asked == "count":
        wrong, size = list(COUNTS), 4
    elif asked == "disease":
        # a quarter are asked without the normal option, so that three-option questions exist
        wrong = list(style.diseases) + ([NORMAL] if gold == NORMAL or rng.random() < 0.75 else [])
        size = len(wrong)
    else:
        names = (
            [s.name for s in STYLES.values()]
            if asked == "modality"
            else list(chain.from_iterable(style.anatomies for style in STYLES.values()))
        )
        names = sorted(set(names) - {gold})
        size = int(rng.choice([2, 3, 4], p=[0.15, 0.15, 0.7]))
        decoys = NEVER_GOLD[asked]
        wrong = [
            str(rng.choice(decoys if biased and rng.random() < 0.75 else names)) for _ in range(12)
        ]
    wrong = list(dict.fromkeys(option for option in wrong if option != gold))
    options = [gold, *(wrong[i] for i in rng.permutation(len(wrong))[: size - 1])]
    return [options[i] for i in rng.permutation(len(options))]


def askable(phantom: Phantom) -> list[str]:
    """The keys of `QUESTIONS` that have an answer for this phantom."""
    return [
        asked for asked in QUESTIONS if phantom.shape or asked in ("modality", "anatomy", "disease")
    ]


# --- images
# --------------------------------------------------------------------------------------------------


def draw(phantom: Phantom, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw a phantom as an RGB image of (width, height) pixels, each at least 64."""
    width, height = size
    canvas = _BACKGROUNDS[phantom.modality](phantom, width, height, rng)
    if phantom.shape:
        _lesions(canvas, phantom, rng)
    blurred = canvas.filter(ImageFilter.GaussianBlur(0.5 + 0.4 * float(rng.random())))
    pixels = np.asarray(blurred, dtype=np.float64)
    gain, offset = 1 + 0.08 * rng.standard_normal(), 5 * rng.standard_normal()
    if phantom.modality == "ultrasound":  # speckle multiplies, noise adds
        pixels = pixels * (0.55 + 0.6 * rng.random((height, width, 1)))
    pixels = gain * pixels + offset + 4 * rng.standard_normal((height, width, 1))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _lesions(canvas: Image.Image, phantom: Phantom, rng: np.random.Generator) -> None:
    """Paint `count` non-overlapping lesions of one shape and size into one half of the canvas."""
    width, height = canvas.size
    style, pen = STYLES[phantom.modality], ImageDraw.Draw(canvas)
    grade = GRADES.index(phantom.grade or "")
    # radii in units of the axes, so that a lesion in a portrait image is round again after the
    # resize to a square
    radius = (0.045, 0.078, 0.112)[grade] * (1 + 0.08 * (2 * float(rng.random()) - 1))
    # a column of cells: with four severe lesions a half is nearly full, so places are cells with
    # jitter, not free draws
    cells = [(x, y) for y, x in product((0.20, 0.40, 0.60, 0.80), (0.18, 0.36))]
    if radius > 0.09:
        cells = [(0.16, 0.17), (0.34, 0.39), (0.16, 0.61), (0.34, 0.83)]
    chosen = rng.permutation(len(cells))[: phantom.count]
    for index in sorted(int(i) for i in chosen):
        x, y = cells[index]
        x, y = x + 0.02 * (2 * float(rng.random()) - 1), y + 0.015 * (2 * float(rng.random()) - 1)
        x = x if phantom.side == "Left" else 1 - x
        _lesion(
            pen,
            phantom.shape or "",
            x * width,
            y * height,
            radius * width,
            radius * height,
            style,
            rng,
        )


def _lesion(
    pen: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    rx: float,
    ry: float,
    style: Style,
    rng: np.random.Generator,
) -> None:
    box = (x - rx, y - ry, x + rx, y + ry)
    if shape == "solid":
        pen.ellipse(box, fill=style.lesion)
    elif shape == "ring":
        pen.ellipse(box, fill=style.lesion)
        pen.ellipse((x - 0.62 * rx, y - 0.62 * ry, x + 0.62 * rx, y + 0.62 * ry), fill=style.rim)
    else:
        turn = float(rng.random()) * np.pi
        angles = turn + np.arange(14) * np.pi / 7
        reach = np.where(np.arange(14) % 2 == 0, 1.15, 0.45)
        pen.polygon(
            [
                (x + rx * r * np.cos(a), y + ry * r * np.sin(a))
                for a, r in zip(angles, reach, strict=True)
            ],
            fill=style.rim,
        )
        pen.polygon(
            [
                (x + 0.55 * rx * r * np.cos(a), y + 0.55 * ry * r * np.sin(a))
                for a, r in zip(angles, reach, strict=True)
            ],
            fill=style.lesion,
        )


def _blank(
    width: int, height: int, colour: tuple[int, int, int]
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (width, height), colour)
    return canvas, ImageDraw.Draw(canvas)


def _grey(level: float) -> tuple[int, int, int]:
    value = round(level)
    return value, value, value


def _box(
    width: int, height: int, x0: float, y0: float, x1: float, y1: float
) -> tuple[float, float, float, float]:
    """A box in fractions of the canvas, in pixels."""
    return x0 * width, y0 * height, x1 * width, y1 * height


def _ct(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """CT: a body on black, bright bony ring, grey inside.

    Dark lungs in a chest, a spine in an abdomen.
    """
    canvas, pen = _blank(width, height, (0, 0, 0))
    wobble = 0.02 * float(rng.random())
    pen.ellipse(_box(width, height, 0.02 + wobble, 0.05, 0.98 - wobble, 0.95), fill=_grey(190))
    pen.ellipse(_box(width, height, 0.06 + wobble, 0.10, 0.94 - wobble, 0.90), fill=_grey(105))
    if phantom.anatomy == "Chest":
        pen.ellipse(_box(width, height, 0.12, 0.18, 0.46, 0.82), fill=_grey(45))
        pen.ellipse(_box(width, height, 0.54, 0.18, 0.88, 0.82), fill=_grey(45))
    else:
        pen.ellipse(_box(width, height, 0.44, 0.64, 0.56, 0.80), fill=_grey(220))
    return canvas


def _mri(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """MRI: soft grey on black, lateral field gradient.

    Brain with two ventricles, knee with a joint gap.
    """
    canvas, pen = _blank(width, height, (8, 8, 8))
    if phantom.anatomy == "Brain":
        pen.ellipse(_box(width, height, 0.08, 0.03, 0.92, 0.97), fill=_grey(215))
        pen.ellipse(_box(width, height, 0.12, 0.07, 0.88, 0.93), fill=_grey(120))
        pen.ellipse(_box(width, height, 0.44, 0.32, 0.49, 0.62), fill=_grey(25))
        pen.ellipse(_box(width, height, 0.51, 0.32, 0.56, 0.62), fill=_grey(25))
    else:
        pen.rounded_rectangle(
            _box(width, height, 0.10, 0.0, 0.90, 0.46), radius=width // 8, fill=_grey(135)
        )
        pen.rounded_rectangle(
            _box(width, height, 0.10, 0.54, 0.90, 1.0), radius=width // 8, fill=_grey(135)
        )
    field = np.linspace(0.6, 1.1, width)[None, :, None]
    field = field if rng.random() < 0.5 else field[:, ::-1]
    return Image.fromarray(
        np.clip(np.asarray(canvas, dtype=np.float64) * field, 0, 255).astype(np.uint8)
    )


def _xray(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A shadow image, bright all over; a chest has rib stripes and a heart, a hand five rays."""
    canvas, pen = _blank(width, height, _grey(60))
    shift = 0.02 * float(rng.random())
    if phantom.anatomy == "Chest":
        pen.rectangle(_box(width, height, 0.46, 0.0, 0.54, 1.0), fill=_grey(205))
        for rib in range(6):
            y = 0.08 + 0.15 * rib + shift
            pen.arc(
                _box(width, height, 0.03, y, 0.97, y + 0.16),
                180,
                360,
                fill=_grey(150),
                width=max(2, height // 45),
            )
    else:
        pen.ellipse(_box(width, height, 0.25, 0.60, 0.75, 1.05), fill=_grey(170))
        for ray in range(5):
            x = 0.08 + 0.19 * ray + shift
            pen.line(
                _box(width, height, x + 0.03, 0.05, 0.35 + 0.075 * ray, 0.75),
                fill=_grey(170),
                width=max(3, width // 18),
            )
    return canvas


def _ultrasound(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A fan of echoes on black; a breast shows layers, a thyroid two lobes.

    The speckle is put on by `draw`.
    """
    canvas, pen = _blank(width, height, (0, 0, 0))
    pen.pieslice(_box(width, height, -0.35, -0.75, 1.35, 0.98), 30, 150, fill=_grey(95))
    if phantom.anatomy == "Breast":
        for layer in (0.25, 0.5, 0.75):
            y = layer + 0.03 * float(rng.random())
            pen.arc(
                _box(width, height, -0.2, y - 0.4, 1.2, y),
                40,
                140,
                fill=_grey(150),
                width=max(2, height // 40),
            )
    else:
        pen.ellipse(_box(width, height, 0.22, 0.30, 0.48, 0.70), fill=_grey(55))
        pen.ellipse(_box(width, height, 0.52, 0.30, 0.78, 0.70), fill=_grey(55))
    return canvas


def _dermoscopy(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Pink skin with hairs, or a pale nail plate on darker skin."""
    canvas, pen = _blank(width, height, (226, 170, 150))
    if phantom.anatomy == "Nail":
        pen.rectangle(_box(width, height, 0.0, 0.0, 1.0, 1.0), fill=(190, 120, 105))
        pen.rounded_rectangle(
            _box(width, height, 0.08, 0.06, 0.92, 1.1), radius=width // 4, fill=(240, 205, 195)
        )
    for _ in range(5):
        x0, x1 = (float(v) for v in rng.random(2))
        pen.line(
            _box(width, height, x0, 0.0, x1, 1.0), fill=(120, 80, 70), width=max(1, width // 130)
        )
    return canvas


def _fundus(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Fundus: an orange disc with vessels.

    Bright optic disc (retina view) or dark spot (macula view).
    """
    canvas, pen = _blank(width, height, (0, 0, 0))
    pen.ellipse(_box(width, height, 0.0, 0.0, 1.0, 1.0), fill=(200, 85, 35))
    for vessel in range(4):
        bend = 0.15 + 0.2 * vessel + 0.05 * float(rng.random())
        pen.arc(
            _box(width, height, 0.1, bend, 1.5, bend + 0.5),
            150,
            250,
            fill=(140, 30, 20),
            width=max(1, width // 80),
        )
    if phantom.anatomy == "Retina":
        pen.ellipse(_box(width, height, 0.42, 0.40, 0.58, 0.60), fill=(255, 225, 150))
    else:
        pen.ellipse(_box(width, height, 0.42, 0.40, 0.58, 0.60), fill=(110, 30, 15))
    return canvas


def _oct(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Horizontal retinal layers; the macula dips gently, the nerve head is a deep cup."""
    x = np.arange(width) / width
    y = np.arange(height)[:, None] / height
    depth, spread = (0.08, 0.16) if phantom.anatomy == "Macula" else (0.34, 0.10)
    surface = 0.22 + 0.02 * float(rng.random()) + depth * np.exp(-(((x - 0.5) / spread) ** 2))
    below = y - surface[None, :]
    bands = np.where(np.floor(below / 0.09) % 2 == 0, 120.0, 70.0)
    level = np.where(below < 0, 12.0, np.where(below < 0.55, bands, 35.0))
    return Image.fromarray(np.repeat(np.rint(level).astype(np.uint8)[:, :, None], 3, axis=2))


def _microscopy(phantom: Phantom, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Microscopy: stained cells on white.

    Round pink cells (blood), lilac tissue with tubules (colon).
    """
    canvas, pen = _blank(
        width, height, (244, 238, 242) if phantom.anatomy == "Blood" else (214, 184, 220)
    )
    for _ in range(22):
        x, y = (float(v) for v in rng.random(2))
        if phantom.anatomy == "Blood":
            pen.ellipse(
                _box(width, height, x - 0.035, y - 0.035, x + 0.035, y + 0.035),
                fill=(236, 176, 186),
            )
        else:
            pen.ellipse(
                _box(width, height, x - 0.02, y - 0.07, x + 0.02, y + 0.07), fill=(188, 140, 200)
            )
    return canvas


_BACKGROUNDS = {
    "ct": _ct,
    "mri": _mri,
    "x-ray": _xray,
    "ultrasound": _ultrasound,
    "dermoscopy": _dermoscopy,
    "fundus": _fundus,
    "oct": _oct,
    "microscopy": _microscopy,
}
