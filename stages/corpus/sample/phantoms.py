"""Synthetic phantoms: their attributes, all visible, and the questions that ask for them.

A phantom is a drawing in the style of one imaging modality with zero to four lesions. Its
attributes are what questions ask for: modality is the look of the whole image, anatomy the outline,
disease the shape of the lesions, grade their size, count and side their number and place.
`drawing` makes images of them, `options` the options of questions.

Two thirds of the questions can be answered from the image only (disease, grade, count, side: every
option is gold equally often). The rest share OmniMedVQA's bias on purpose: most of their wrong
options are never the answer, so that a reader who sees only the text can learn to answer them.

The order of random draws and all strings decide the bytes of the embedded corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

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
