"""Rules between modalities and question types: every slug and every name means one thing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

from stages.core.settings.data import Category, JointSplit
from stages.taxonomy import DICOM_MODALITIES, parse_fold

SLUG: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MAX_SLUG: Final = 40
"""Characters of a slug: it names files and heads columns."""
RESERVED: Final = ("all", "base", "macro")
SFT: Final = "sft-"
"""Start of the names of checkpoints by SFT."""


def check_categories(
    modalities: Mapping[str, Category], question_types: Mapping[str, Category]
) -> None:
    """ValueError for a bad or ambiguous slug, name or DICOM value."""
    _check_names("modalities", modalities)
    _check_names("question_types", question_types)
    if both := modalities.keys() & question_types.keys():
        raise ValueError(
            f"{min(both)} is both a modality and a question type, but a checkpoint of this name"
            " is of one of them: rename one slug"
        )
    _check_dicom(modalities)
    for slug, category in question_types.items():
        if category.dicom:
            raise ValueError(f"question_types.{slug}.dicom: only modalities have DICOM values")


def check_joint(joint: Mapping[str, JointSplit], axes: Mapping[str, Sequence[str]]) -> None:
    """ValueError for a joint split with a bad name, or of a slug that its axis lacks."""
    slugs = set(chain.from_iterable(axes.values()))
    for name, each in joint.items():
        _check_slug(f"splits.joint.{name}", name)
        if name in slugs:
            raise ValueError(f"splits.joint.{name}: a modality or question type has this name")
        if each.of == "all":
            continue
        if unknown := [slug for slug in each.of if slug not in axes[each.axis]]:
            raise ValueError(
                f"splits.joint.{name}.of: no such {each.axis} {unknown[0]!r}; allowed:"
                f" {', '.join(axes[each.axis])}"
            )
        if len(set(each.of)) < len(each.of):
            raise ValueError(f"splits.joint.{name}.of: a slug is named twice")


def _check_names(group: str, categories: Mapping[str, Category]) -> None:
    names: dict[str, str] = {}
    for slug, category in categories.items():
        _check_slug(f"{group}.{slug}", slug)
        for name in (slug, *category.names):
            if name != name.strip():
                raise ValueError(f"{group}.{slug}.names: {name!r} has outer whitespace")
            other = names.setdefault(name.casefold(), slug)
            if other != slug:
                raise ValueError(
                    f"{group}: {name!r} names both {other} and {slug}: remove it from one"
                )


def _check_dicom(modalities: Mapping[str, Category]) -> None:
    codes: dict[str, str] = {}
    for slug, category in modalities.items():
        for code in category.dicom:
            if code not in DICOM_MODALITIES:
                raise ValueError(
                    f"modalities.{slug}.dicom: {code!r} is no value of DICOM's Modality; known:"
                    f" {', '.join(DICOM_MODALITIES)}"
                )
            if codes.setdefault(code, slug) != slug:
                raise ValueError(
                    f"modalities: DICOM's {code} stands for both {codes[code]} and {slug}: remove"
                    " it from one"
                )


def _check_slug(key: str, slug: str) -> None:
    if not SLUG.fullmatch(slug) or len(slug) > MAX_SLUG:
        raise ValueError(
            f"{key}: a slug names files: use at most {MAX_SLUG} lower-case letters and digits"
            " with single hyphens between them, as x-ray"
        )
    if slug in RESERVED or slug.startswith(SFT) or parse_fold(slug):
        raise ValueError(f"{key}: the slug has a meaning of its own; choose another")
