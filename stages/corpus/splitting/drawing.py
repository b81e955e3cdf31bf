"""Drawing train and test questions of every modality and question type, in two kinds of split.

grouped: all questions of an image, its copies and its patient are on one side, the same on both
axes. random: over questions, each axis by itself, as in Med-R1 (arXiv 2503.13939).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from itertools import chain
from typing import Any, Final

import numpy as np

from stages.core.params import Splits
from stages.corpus.dataset.problems import format_problem, format_solution
from stages.corpus.records.images import SHOWN, SOURCES
from stages.corpus.records.records import PATIENT, STUDY, Record
from stages.corpus.splitting.draws import Draw, Item, by_fold
from stages.corpus.splitting.groups import GroupedImage, group_images, patient_of
from stages.corpus.splitting.stratify import stratify
from stages.taxonomy import Axes

Sides = tuple[list[Item], list[Item]]
"""(train, test)."""

_FIELD: Final = {"modality": "modality", "task": "question_type"}
"""Axis -> the field of an item that names its slug."""


def draw_splits(
    records: Sequence[Record], settings: Splits, axes: Axes
) -> tuple[list[GroupedImage], dict[str, str], dict[str, Draw]]:
    """Images, image -> group, and kind of split -> draw, of valid records (sorted by id).

    The draws are those of the two kinds that are drawn.
    """
    items = [make_item(record) for record in records]
    images = grouped_images(records, settings)
    group_of = group_images(images, settings.near_duplicates)
    draws = {
        "grouped": grouped(items, group_of, settings, axes),
        "random": random(items, settings, axes),
    }
    return images, group_of, draws


def grouped(
    items: Sequence[Item], group_of: Mapping[str, str], settings: Splits, axes: Axes
) -> Draw:
    """Split items (sorted by question_id) by groups of images, with the same draw on both axes."""
    train_groups = stratify(_strata(items, group_of), settings.train_share, settings.seed)
    return _by_groups(items, group_of, train_groups, axes)


def draw_folds(
    records: Sequence[Record], group_of: Mapping[str, str], settings: Splits, axes: Axes
) -> list[Draw]:
    """The draws of splits.folds folds: every group is in the test of one, in train of the others.

    Each fold is a stratified share of the groups that are not in an earlier one.
    """
    assert settings.folds, "no cross-validation"
    items = [make_item(record) for record in records]
    strata = _strata(items, group_of)
    draws = []
    remaining = strata
    for number in range(settings.folds, 0, -1):
        share = (number - 1) / number
        later = stratify(remaining, share, settings.seed) if number > 1 else set()
        test = remaining.keys() - later
        draws.append(_by_groups(items, group_of, strata.keys() - test, axes))
        remaining = {name: group for name, group in strata.items() if name in later}
    return draws


def cross_validated(folds: Sequence[Draw]) -> Draw:
    """All splits of a cross-validation: of each fold, by `fold_slug`, and what is tested in all.

    The splits of the plain slugs have no train part: no checkpoint is trained on one.
    """
    result = {axis: dict(slugs) for axis, slugs in by_fold(folds).items()}
    for axis, slugs in folds[0].items():
        for slug in slugs:
            tests = chain.from_iterable(fold[axis][slug][1] for fold in folds)
            result[axis][slug] = ([], sorted(tests, key=lambda item: str(item["question_id"])))
    return result


def _strata(
    items: Sequence[Item], group_of: Mapping[str, str]
) -> dict[str, Counter[tuple[str, str]]]:
    strata: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for item in items:
        strata[group_of[item["image"]]][item["modality"], item["question_type"]] += 1
    return strata


def _by_groups(
    items: Sequence[Item], group_of: Mapping[str, str], train_groups: Set[str], axes: Axes
) -> Draw:
    return {
        axis: {
            slug: _cut(own, [group_of[item["image"]] in train_groups for item in own])
            for slug, own in _by_slug(items, axis, slugs).items()
        }
        for axis, slugs in axes.items()
    }


def random(items: Sequence[Item], settings: Splits, axes: Axes) -> Draw:
    """Split items (sorted by question_id) at random: round(n * train_share) for training.

    If there are at least two items, each side gets at least one; a single one is for testing.
    """
    return {
        axis: {
            slug: _at_random(own, axis, slug, settings)
            for slug, own in _by_slug(items, axis, slugs).items()
        }
        for axis, slugs in axes.items()
    }


def _at_random(items: list[Item], axis: str, slug: str, settings: Splits) -> Sides:
    count = 0
    if len(items) > 1:  # at least one on each side
        count = min(max(round(len(items) * settings.train_share), 1), len(items) - 1)
    # seeded by a hash: the same on every machine, and independent of the other splits
    key = hashlib.sha256(f"{settings.seed}/{axis}/{slug}".encode()).digest()
    train = set(np.random.default_rng(list(key)).permutation(len(items))[:count].tolist())
    return _cut(items, [index in train for index in range(len(items))])


def _cut(items: list[Item], in_train: list[bool]) -> Sides:
    sides: Sides = ([], [])
    for item, is_train in zip(items, in_train, strict=True):
        sides[0 if is_train else 1].append(item)
    return sides


def _by_slug(items: Sequence[Item], axis: str, slugs: Sequence[str]) -> dict[str, list[Item]]:
    return {slug: [item for item in items if item[_FIELD[axis]] == slug] for slug in slugs}


def make_item(record: Record) -> Item:
    """The question of a split file."""
    item: dict[str, Any] = {
        "image": record.fields["image"],
        "problem": format_problem(record.question, record.options),
        "solution": format_solution(record.gold),
        "options": record.options,
        "question_id": record.question_id,
        "dataset": record.dataset,
        "modality": record.modality,
        "question_type": record.question_type,
    }
    if SHOWN in record.fields:
        item["images"] = record.fields[SHOWN]
    if record.context is not None:
        item["context"] = record.context
    return item


def grouped_images(records: Sequence[Record], settings: Splits) -> list[GroupedImage]:
    """The distinct images of the records; those that a question shows are linked."""
    patterns = [re.compile(pattern) for pattern in settings.patient_patterns]
    by_path: dict[str, GroupedImage] = {}
    for record in records:
        fields = record.fields
        sources = fields.get(SOURCES, ())
        image = fields["image"]
        by_path[image] = GroupedImage(
            image,
            fields["pixel_hash"],
            fields["perceptual_hash"],
            _patient(record, record.image_path, patterns),
            record.dataset,
            fields.get(STUDY),
            _merged(by_path.get(image), [each["image"] for each in sources]),
        )
        for path, each in zip(record.image_paths, sources, strict=False):
            known = by_path.get(each["image"])
            by_path[each["image"]] = GroupedImage(
                each["image"],
                each["pixel_hash"],
                each["perceptual_hash"],
                _patient(record, path, patterns),
                record.dataset,
                fields.get(STUDY),
                _merged(known, [image]),
                tuple(sorted({*(known.frame_hashes if known else ()), *each["frames"]})),
            )
    return list(by_path.values())


def _merged(known: GroupedImage | None, linked: Sequence[str]) -> tuple[str, ...]:
    """What an image is linked to, by all questions about it."""
    return tuple(sorted({*(known.linked if known else ()), *linked}))


def _patient(
    record: Record, image_path: str, patterns: Sequence[re.Pattern[str]]
) -> tuple[str, str] | None:
    """The patient by the record (table or DICOM header), or else by the path of the image."""
    if first := record.fields.get(PATIENT):
        return "", first  # the name of an image, which no two data sets share
    return patient_of(image_path, patterns)
