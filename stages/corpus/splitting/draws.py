"""A draw: the train and test splits of every modality and question type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from stages.taxonomy import fold_slug

Item = Mapping[str, Any]
"""A question of a split file."""
Draw = Mapping[str, Mapping[str, tuple[Sequence[Item], Sequence[Item]]]]
"""Axis -> slug -> (train, test)."""


class Split(NamedTuple):
    """Train and test questions of one slug of an axis."""

    axis: str
    slug: str
    train: Sequence[Item]
    test: Sequence[Item]


def with_joint(draw: Draw, unions: Mapping[str, tuple[str, Sequence[str]]]) -> Draw:
    """The draw with unions of splits under names of their own: name -> (axis, slugs)."""
    result = {axis: dict(slugs) for axis, slugs in draw.items()}
    for name, (axis, slugs) in unions.items():
        sides = [draw[axis][slug] for slug in slugs]
        train, test = (
            sorted(chain.from_iterable(part), key=lambda item: str(item["question_id"]))
            for part in zip(*sides, strict=True)
        )
        result[axis][name] = (train, test)
    return result


def by_fold(folds: Sequence[Draw]) -> Draw:
    """The splits of all folds of a cross-validation, by `fold_slug`; one draw as it is."""
    if len(folds) == 1:
        return folds[0]
    result: dict[str, dict[str, tuple[Sequence[Item], Sequence[Item]]]] = {}
    for number, fold in enumerate(folds, 1):
        for axis, slugs in fold.items():
            own = {fold_slug(slug, number): sides for slug, sides in slugs.items()}
            result[axis] = result.get(axis, {}) | own
    return result


def splits_of(draw: Draw) -> Iterator[Split]:
    """The splits of a draw, in its order."""
    for axis, slugs in draw.items():
        for slug, (train, test) in slugs.items():
            yield Split(axis, slug, train, test)
