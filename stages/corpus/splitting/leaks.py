"""Leakage: test questions whose image, or an image of the same group, is in train."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.corpus.dataset.split_files import KINDS
from stages.taxonomy import AXES

Item = Mapping[str, Any]
Draw = Mapping[str, Mapping[str, tuple[Sequence[Item], Sequence[Item]]]]
"""Axis -> slug -> (train, test)."""


@dataclass(frozen=True)
class Leak:
    """Test questions of one or more splits, and how many are known from train in which way."""

    test: int
    """All test questions."""
    image: int
    """Those whose image is also in train of the same split."""
    group: int
    """Those with an image of the same group in train: it, a copy of it, or another one of the
    patient.
    """
    other_axis: int
    """Those which are themselves training questions on the other axis."""


Leaks = dict[str, dict[str, Leak]]
"""Axis -> slug -> what leaks."""


def count_leaks(draw: Draw, group_of: Mapping[str, str]) -> Leaks:
    """What leaks in each split of a draw; `group_of` is image -> group."""
    # axis -> ids of the questions that any of its checkpoints is trained on
    trained: dict[str, set[str]] = {}
    for axis, slugs in draw.items():
        items = chain.from_iterable(train for train, _ in slugs.values())
        trained[axis] = {item["question_id"] for item in items}
    return {
        axis: {
            slug: _count(
                train,
                test,
                group_of,
                set().union(*(known for other, known in trained.items() if other != axis)),
            )
            for slug, (train, test) in slugs.items()
        }
        for axis, slugs in draw.items()
    }


def total(leaks: Iterable[Leak]) -> Leak:
    """The sum over splits."""
    rows = list(leaks)
    return Leak(
        **{field.name: sum(getattr(row, field.name) for row in rows) for field in fields(Leak)}
    )


def as_json(leaks: Leaks) -> dict[str, dict[str, dict[str, int]]]:
    """The counts as they are written down."""
    return {
        axis: {slug: asdict(leak) for slug, leak in slugs.items()} for axis, slugs in leaks.items()
    }


def read_leaks(path: Path) -> dict[str, Leaks]:
    """Kind of split -> its counts, from the file of stage splits.

    InputError if it is missing or is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            kind: {
                axis: {slug: Leak(**content[kind][axis][slug]) for slug in AXES[axis]}
                for axis in AXES
            }
            for kind in KINDS
        }
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro splits`") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} does not count leaks ({error!r}): delete it and run `dvc repro splits`"
        ) from error


def _count(
    train: Sequence[Item], test: Sequence[Item], group_of: Mapping[str, str], elsewhere: set[str]
) -> Leak:
    images = {item["image"] for item in train}
    groups = {group_of[image] for image in images}
    return Leak(
        test=len(test),
        image=sum(item["image"] in images for item in test),
        group=sum(group_of[item["image"]] in groups for item in test),
        other_axis=sum(item["question_id"] in elsewhere for item in test),
    )
