"""A draw: the train and test splits of every modality and question type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


def splits_of(draw: Draw) -> Iterator[Split]:
    """The splits of a draw, in its order."""
    for axis, slugs in draw.items():
        for slug, (train, test) in slugs.items():
            yield Split(axis, slug, train, test)
