"""Splits with too little data are left out: their checkpoints are neither trained nor tested.

Their questions stay in the splits of the other axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from stages.core import layout
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from stages.corpus.splitting.draws import Draw, splits_of
from stages.taxonomy import fold_slugs


class MatrixLimits(Protocol):
    """The group `matrix` of params.yaml."""

    @property
    def min_train(self) -> int:
        """Training questions of a split."""

    @property
    def min_test(self) -> int:
        """Test questions of a split."""

    @property
    def strict(self) -> bool:
        """Refuse the corpus instead of leaving a split out."""


@dataclass(frozen=True)
class LeftOut:
    """Questions of a split that is left out, and groups of images that they are about."""

    train: int
    test: int
    groups: int


LeftOutSplits = dict[str, dict[str, LeftOut]]
"""Axis -> slug -> why it is left out; for axes with any."""


def find_left_out(
    folds: Sequence[Draw], group_of: Mapping[str, str], limits: MatrixLimits
) -> LeftOutSplits:
    """The splits with fewer questions than the limits in any of the folds, and how many there.

    `folds`: the draws of a cross-validation, or one draw; `group_of`: image -> group.
    """
    left_out: LeftOutSplits = {}
    for axis, slug, train, test in chain.from_iterable(map(splits_of, folds)):
        if len(train) < limits.min_train or len(test) < limits.min_test:
            groups = {group_of[item["image"]] for item in (*train, *test)}
            found = LeftOut(len(train), len(test), len(groups))
            left_out.setdefault(axis, {}).setdefault(slug, found)
    return left_out


def of_folds(left_out: LeftOutSplits, folds: int) -> LeftOutSplits:
    """The same, with the names of the folds' splits too."""
    result: LeftOutSplits = {}
    for axis, slugs in left_out.items():
        result[axis] = dict(slugs)
        for slug, each in slugs.items():
            result[axis] |= dict.fromkeys(fold_slugs(slug, folds), each)
    return result


def without(draw: Draw, left_out: LeftOutSplits) -> Draw:
    """The draw with no questions in the splits that are left out."""
    return {
        axis: {
            slug: ([], []) if slug in left_out.get(axis, {}) else sides
            for slug, sides in slugs.items()
        }
        for axis, slugs in draw.items()
    }


def check_matrix(draw: Draw, left_out: LeftOutSplits, kind: str, limits: MatrixLimits) -> None:
    """Raise RefusedDataError if a split is left out and `strict`, or if none remains."""
    remedy = f"add data, lower matrix in params.yaml, or see {layout.QUARANTINE}/ for refusals"
    if kind == "grouped":
        remedy += (
            "; splits.near_duplicates and splits.patient_patterns decide how images are grouped"
        )
    if kind == "released":
        remedy += "; a split needs a train file and a test file in splits.released.folder"
    named = describe(left_out)
    if left_out and limits.strict:
        raise RefusedDataError(
            f"{len(named)} splits have too little data, and matrix.strict is set:"
            f" {'; '.join(named)}. Otherwise {remedy}",
            CorpusFault.EMPTY_SPLIT,
        )
    if len(named) == sum(map(len, draw.values())):
        raise RefusedDataError(
            f"no split has enough data to train and test: {'; '.join(named)}. Remedy: {remedy}",
            CorpusFault.EMPTY_SPLIT,
        )


def describe(left_out: Mapping[str, Mapping[str, LeftOut]]) -> list[str]:
    """Each split that is left out, with its numbers of questions."""
    texts = []
    for axis, slugs in left_out.items():
        for slug, each in slugs.items():
            texts.append(
                f"{axis}/{slug}: {each.train} to train, {each.test} to test, of {each.groups}"
                " groups of images"
            )
    return texts
