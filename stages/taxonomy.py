"""Taxonomy: the modalities and question types that params.yaml defines, and names for them.

A slug names a split, a checkpoint and a folder; a record names its modality and question type by
one of their accepted names. A record matches only if its name is one of these exactly; anything
else is quarantined, never guessed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

SPECIFIC_DICOM: Final = (
    *("CT", "MR", "CR", "DX", "RG", "MG", "IO", "PX", "US", "DMS", "OP", "OPT", "SM", "GM"),
)
"""Values of DICOM's Modality that stand for one kind of image, unlike OT or SC."""
DICOM_MODALITIES: Final = (
    *SPECIFIC_DICOM,
    *("BI", "CFM", "ECG", "ES", "IVOCT", "IVUS", "LS", "NM", "OCT", "OPTENF", "OPV", "OSS", "OT"),
    *("PA", "PT", "RF", "RTDOSE", "RTIMAGE", "SC", "SEG", "TG", "VF", "XA", "XC"),
)
"""Known values of DICOM's Modality (PS3.3 C.7.3.1.1.1); others of a file are never passed on."""

Axis = Literal["modality", "task"]
AXIS_NAMES: Final[tuple[Axis, ...]] = ("modality", "task")
"""The corpus is split by imaging modality and by question type."""
Axes = Mapping[str, tuple[str, ...]]
"""Axis -> its slugs, in the order of tables."""
_FOLD: Final = re.compile(r"(.+)-fold-([1-9][0-9]*)")


def fold_slug(slug: str, fold: int) -> str:
    """Name of a split, or of its checkpoint, in one fold of a cross-validation, from 1."""
    return f"{slug}-fold-{fold}"


def fold_slugs(slug: str, folds: int) -> list[str]:
    """Names of a split in all folds."""
    return [fold_slug(slug, number) for number in range(1, folds + 1)]


def parse_fold(slug: str) -> tuple[str, int] | None:
    """Name and fold of a split or checkpoint; None if it is of none."""
    match = _FOLD.fullmatch(slug)
    return (match[1], int(match[2])) if match else None


def fold_number(slug: str) -> int | None:
    """The fold of a split or checkpoint; None if it is of none."""
    fold = parse_fold(slug)
    return fold[1] if fold else None


@dataclass(frozen=True)
class Category:
    """A modality or question type: its accepted names, and values of Modality in DICOM headers.

    The first name is the one that is written where a record has none, or another spelling.
    """

    names: tuple[str, ...]
    dicom: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """The slugs of one axis, in the order of tables, and how records may name them."""

    field: Literal["modality_type", "question_type"]
    """The field of a record that holds the name."""
    categories: Mapping[str, Category]

    def __iter__(self) -> Iterator[str]:
        """The slugs."""
        return iter(self.categories)

    def __len__(self) -> int:
        """Number of slugs."""
        return len(self.categories)

    @cached_property
    def slug_of(self) -> Mapping[str, str]:
        """Accepted name -> slug."""
        slugs: dict[str, str] = {}
        for slug, category in self.categories.items():
            slugs |= dict.fromkeys(category.names, slug)
        return slugs

    @cached_property
    def spellings(self) -> Mapping[str, str]:
        """Slug or accepted name, case-folded -> name as written in records; for spreadsheets."""
        spellings: dict[str, str] = {}
        for slug, category in self.categories.items():
            for spelling in (slug, *category.names):
                spellings.setdefault(spelling.casefold(), category.names[0])
        return spellings

    def name(self, slug: str) -> str:
        """The name that records carry."""
        return self.categories[slug].names[0]

    def nearest(self, value: str) -> str | None:
        """The slug most similar to an unknown text, for messages only; None if none is similar.

        Compares the number of shared words first, then the similarity of the spelling.
        """
        slug, similarity = self._most_similar(value)
        return slug if similarity > (0, _SIMILAR) else None

    def spelled(self, folded: str) -> str | None:
        """The slug of a case-folded slug or accepted name."""
        name = self.spellings.get(folded)
        return self.slug_of[name] if name else None

    def nearest_by_word(self, value: str) -> str | None:
        """The slug that shares most words with an unknown text; None if none shares any.

        Words such as "images" or "scan" say nothing of a modality and do not count, and a text with
        the word of another modality, such as "endoscopy images", is like none.
        """
        words = _words(value.casefold())
        if words & _OTHERS:
            return None
        slug, (shared, _) = self._most_similar(" ".join(sorted(words - _GENERIC)))
        return slug if shared else None

    def _most_similar(self, value: str) -> tuple[str, tuple[int, float]]:
        """A slug, and its similarity: shared words, then the ratio of equal characters."""
        folded = value.casefold()
        best = (next(iter(self.categories)), (0, 0.0))
        if folded.strip() in _OTHERS:
            return best
        for slug, category in self.categories.items():
            names = (slug, *(name.casefold() for name in category.names))
            shared = _words(folded) & _words(" ".join([*names, _SYNONYMS.get(slug, "")]))
            ratios = [difflib.SequenceMatcher(None, folded[:100], name).ratio() for name in names]
            similarity = (len(shared), max(ratios))
            if similarity > best[1]:
                best = (slug, similarity)
        return best


@dataclass(frozen=True)
class Taxonomy:
    """The modalities and question types of a project."""

    modalities: Vocabulary
    question_types: Vocabulary

    @cached_property
    def axes(self) -> Axes:
        """Axis -> its slugs."""
        return {"modality": tuple(self.modalities), "task": tuple(self.question_types)}

    @cached_property
    def by_dicom(self) -> Mapping[str, str]:
        """Value of Modality in a DICOM header -> slug."""
        slugs: dict[str, str] = {}
        for slug, category in self.modalities.categories.items():
            slugs |= dict.fromkeys(category.dicom, slug)
        return slugs


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
"""Modalities that are like none of OmniMedVQA's, however similar their names."""
_GENERIC: Final = frozenset(
    (
        *("image", "images", "imaging", "scan", "scans", "picture", "pictures", "photo", "photos"),
        *("photography", "tomography", "optical", "digital", "clinical", "medical", "study"),
        *("identification", "recognition", "diagnosis", "grading", "attributes", "other"),
        *("question", "questions", "type", "task", "biological"),
    )
)
"""Words that names share without being of one kind."""
_SIMILAR: Final = 0.6
"""difflib's ratio above which a text may be a misspelt name."""


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text))
