"""The eight imaging modalities and five question types: our slugs and OmniMedVQA's own literals.

The literals are OmniMedVQA's (arXiv 2402.09181), typing slips included: "Mag-netic", and OCT's
missing bracket. A record matches only if its literal matches exactly; anything else is quarantined,
never guessed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final

MODALITIES: Final[dict[str, str]] = {
    "ct": "CT(Computed Tomography)",
    "mri": "MR (Mag-netic Resonance Imaging)",
    "x-ray": "X-Ray",
    "ultrasound": "ultrasound",
    "dermoscopy": "Dermoscopy",
    "fundus": "Fundus Photography",
    "oct": "OCT (Optical Coherence Tomography",
    "microscopy": "Microscopy Images",
}
"""Modality slug -> `modality_type` literal, in the order of Med-R1's tables."""

QUESTION_TYPES: Final[dict[str, str]] = {
    "anatomy-identification": "Anatomy Identification",
    "disease-diagnosis": "Disease Diagnosis",
    "lesion-grading": "Lesion Grading",
    "modality-recognition": "Modality Recognition",
    "other-biological-attributes": "Other Biological Attributes",
}
"""Question-type slug -> `question_type` literal, in the order of Med-R1's tables."""

MODALITY_SLUGS: Final[dict[str, str]] = {literal: slug for slug, literal in MODALITIES.items()}
QUESTION_TYPE_SLUGS: Final[dict[str, str]] = {
    literal: slug for slug, literal in QUESTION_TYPES.items()
}

AXES: Final[dict[str, tuple[str, ...]]] = {
    "modality": tuple(MODALITIES),
    "task": tuple(QUESTION_TYPES),
}
"""The two ways the corpus is cut into train and test: by imaging modality and by question type."""

_ALSO_CALLED: Final[dict[str, str]] = {
    "mri": "mr",
    "x-ray": "cr dx xr radiograph radiography mammography",
    "ultrasound": "us sonography echo",
    "dermoscopy": "dermatoscopy skin",
    "fundus": "cfp retina",
    "microscopy": "histology pathology",
    "disease-diagnosis": "finding",
    "lesion-grading": "stage severity",
}

_ALIKE: Final = 0.6
"""difflib's ratio above which a word may be another one misspelt."""


def nearest(value: str, literals: Mapping[str, str]) -> str | None:
    """The slug most similar to an unknown text, for a message only.

    `literals`: slug -> literal, MODALITIES or QUESTION_TYPES. The one that shares most words with
    the text; of several, the most similar; None if nothing is alike.
    """
    folded = value.casefold()

    def likeness(slug: str) -> tuple[int, float]:
        names = (slug, literals[slug].casefold())
        shared = _words(folded) & _words(" ".join([*names, _ALSO_CALLED.get(slug, "")]))
        return len(shared), max(
            difflib.SequenceMatcher(None, folded[:100], name).ratio() for name in names
        )

    best = max(literals, key=likeness)
    return best if likeness(best) > (0, _ALIKE) else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text))
