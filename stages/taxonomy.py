"""The eight imaging modalities and five question types: slugs, and the literals of OmniMedVQA.

The literals (arXiv 2402.09181) keep its typos: "Mag-netic", and OCT's missing bracket. A record
matches only if its literal matches exactly; anything else is quarantined, never guessed.
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
"""`modality_type` literal -> slug."""
QUESTION_TYPE_SLUGS: Final[dict[str, str]] = {
    literal: slug for slug, literal in QUESTION_TYPES.items()
}
"""`question_type` literal -> slug."""

AXES: Final[dict[str, tuple[str, ...]]] = {
    "modality": tuple(MODALITIES),
    "task": tuple(QUESTION_TYPES),
}
"""Axis -> its slugs: the corpus is split by imaging modality and by question type."""

_SYNONYMS: Final[dict[str, str]] = {
    "mri": "mr",
    "x-ray": "cr dx xr radiograph radiography mammography",
    "ultrasound": "us sonography echo",
    "dermoscopy": "dermatoscopy skin",
    "fundus": "cfp retina",
    "microscopy": "histology pathology",
    "disease-diagnosis": "finding",
    "lesion-grading": "stage severity",
}

_OTHERS: Final = frozenset(
    (
        *("endoscopy", "colonoscopy", "gastroscopy", "laparoscopy", "bronchoscopy", "cystoscopy"),
        *("photography", "digital photography", "photograph", "photo", "video"),
        *("pet", "pet/ct", "pet-ct", "spect", "scintigraphy", "nuclear medicine", "nm", "pt"),
        *("ecg", "eeg", "angiography", "fluoroscopy", "thermography", "elastography"),
    )
)
"""Modalities that are none of the eight, however similar their names."""
_SIMILAR: Final = 0.6
"""difflib's ratio above which a text may be a misspelt name."""


def nearest(value: str, literals: Mapping[str, str]) -> str | None:
    """The slug most similar to an unknown text, for messages only; None if none is similar.

    `literals`: slug -> literal, MODALITIES or QUESTION_TYPES. Compares the number of shared words
    first, then the similarity of the spelling.
    """
    folded = value.casefold()
    if folded.strip() in _OTHERS:
        return None

    def similarity(slug: str) -> tuple[int, float]:
        names = (slug, literals[slug].casefold())
        shared = _words(folded) & _words(" ".join([*names, _SYNONYMS.get(slug, "")]))
        ratios = [difflib.SequenceMatcher(None, folded[:100], name).ratio() for name in names]
        return len(shared), max(ratios)

    best = max(literals, key=similarity)
    return best if similarity(best) > (0, _SIMILAR) else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text))
