"""Contribution of each part of a question: its images, their number and order, its context.

On a checkpoint's own test questions about several images, and on those with context, its answers
are compared with its answers to the same questions without a part, and with the base's. Differences
are paired, and intervals resample images with all their questions, as elsewhere: an interval of
questions that share one image is unknown, as there is nothing to resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.predictions.schema import ABLATIONS, CONTEXT_PARTS, IMAGE_PARTS
from stages.scoring.statistics import bootstrap_cells, cluster_interval, percentiles
from stages.scoring.tables import Target, mean_of_all, own_questions, with_ablation
from stages.scoring.variants import has

if TYPE_CHECKING:
    import pandas as pd

AS_ASKED: Final = "as_asked"
"""Name of the questions as they are, beside the variants."""


@dataclass(frozen=True)
class Kind:
    """Questions that have the column `column`: the variants without a part, and exchanged ones."""

    column: str
    parts: tuple[str, ...]
    exchanged: tuple[str, ...]
    """Variants with something of another question, on which a checkpoint is compared with the base:
    what it gains there does not come from what was exchanged.
    """


KINDS: Final = {
    "several_images": Kind("images", (*reversed(ABLATIONS), *IMAGE_PARTS), ("shuffled",)),
    "context": Kind("context", CONTEXT_PARTS, ("shuffled", "other_context")),
}
"""Kind of question -> how it is taken apart."""


@dataclass(frozen=True)
class _Pairs:
    """Answers to `n` questions in two ways: whether both are correct, and the questions' images."""

    correct: NDArray[np.bool_]
    other: NDArray[np.bool_]
    images: pd.Series[Any]

    @property
    def differences(self) -> NDArray[np.int64]:
        """1 where only the first answer is correct, -1 where only the other is."""
        return self.correct.astype(np.int64) - self.other.astype(np.int64)


Comparisons = Mapping[str, Mapping[str, _Pairs]]
"""Group ("to_base", "parts", "base_parts") -> name of a variant, or `AS_ASKED` -> answers."""


def contributions(
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    summarized: Sequence[str],
    samples: int,
    seed: int,
) -> dict[str, Any] | None:
    """By checkpoint and kind of question, and means over the checkpoints `summarized`.

    `predictions` are checked tables of "base" and of each checkpoint in `targets`; `samples` and
    `seed` are those of the bootstrap. None if no checkpoint's own test has such questions.
    """
    base = predictions["base"].set_index("question_id", drop=False)
    checkpoints: dict[str, dict[str, Any]] = {}
    compared: dict[str, dict[str, Comparisons]] = {kind: {} for kind in KINDS}
    for name, target in targets.items():
        own = own_questions(predictions[name], target)
        for kind, taken in KINDS.items():
            rows = own[has(own, taken.column)]
            if rows.empty:
                continue
            pairs = _compare(rows, base.loc[rows.index], taken)
            compared[kind][name] = pairs
            checkpoints.setdefault(name, {})[kind] = {
                "n": len(rows),
                "images": rows["image"].nunique(),
                **{
                    group: {each: _result(pair, samples, seed) for each, pair in named.items()}
                    for group, named in pairs.items()
                },
            }
    if not checkpoints:
        return None
    means = {}
    for kind, by_checkpoint in compared.items():
        chosen = [pairs for name, pairs in by_checkpoint.items() if name in summarized]
        if chosen:
            means[kind] = _means(chosen, samples, seed)
    return {"means": means, "checkpoints": checkpoints}


def _compare(own: pd.DataFrame, base: pd.DataFrame, kind: Kind) -> Comparisons:
    """All comparisons of a checkpoint and the base on the same questions of one kind."""
    to_base = {AS_ASKED: _pairs(own, base, "correct", "correct")}
    for variant in kind.exchanged:
        both = with_ablation(own, variant).index.intersection(with_ablation(base, variant).index)
        if len(both):
            column = f"{variant}_correct"
            to_base[variant] = _pairs(own.loc[both], base.loc[both], column, column)
    return {
        "to_base": to_base,
        "parts": _without_parts(own, kind),
        "base_parts": _without_parts(base, kind),
    }


def _without_parts(rows: pd.DataFrame, kind: Kind) -> dict[str, _Pairs]:
    """Variant -> the answers as asked and in the variant, if it was asked at all."""
    parts = {}
    for variant in kind.parts:
        asked = with_ablation(rows, variant)
        if len(asked):
            parts[variant] = _pairs(asked, asked, "correct", f"{variant}_correct")
    return parts


def _pairs(rows: pd.DataFrame, others: pd.DataFrame, column: str, other: str) -> _Pairs:
    return _Pairs(rows[column].to_numpy(bool), others[other].to_numpy(bool), rows["image"])


def _result(pairs: _Pairs, samples: int, seed: int) -> dict[str, Any]:
    low: float | None = None
    high: float | None = None
    if pairs.images.nunique() > 1:
        low, high = cluster_interval(pairs.differences, pairs.images, samples, seed)
    return {
        "n": len(pairs.correct),
        "accuracy": float(pairs.correct.mean()),
        "other": float(pairs.other.mean()),
        "gain": float(pairs.differences.mean()),
        "low": low,
        "high": high,
    }


def _means(compared: Sequence[Comparisons], samples: int, seed: int) -> dict[str, Any]:
    """Unweighted means of the gains of checkpoints that have them, images resampled jointly."""
    cells: dict[tuple[str, str], list[_Pairs]] = {}
    for pairs in compared:
        for group, named in pairs.items():
            for each, pair in named.items():
                cells.setdefault((group, each), []).append(pair)
    ordered = list(chain.from_iterable([(key, pair) for pair in own] for key, own in cells.items()))
    draws = bootstrap_cells([(pair.differences, pair.images) for _, pair in ordered], samples, seed)
    means: dict[str, dict[str, Any]] = {}
    for (group, each), own in cells.items():
        columns = [index for index, (key, _) in enumerate(ordered) if key == (group, each)]
        low, high = _mean_interval(draws[:, columns], own)
        means.setdefault(group, {})[each] = {
            "checkpoints": len(own),
            "n": sum(len(pair.correct) for pair in own),
            "gain": mean_of_all([float(pair.differences.mean()) for pair in own]),
            "low": low,
            "high": high,
        }
    return means


def _mean_interval(
    draws: NDArray[np.float64], cells: Sequence[_Pairs]
) -> tuple[float | None, float | None]:
    """95% interval of the mean over cells, of whose means `draws` (samples, cells) are resamples.

    A resample without a question in any cell counts in none.
    """
    images = set().union(*(pair.images for pair in cells))
    known = draws[~np.isnan(draws).all(axis=1)]
    if len(images) < 2 or not len(known):
        return None, None
    return percentiles(np.nanmean(known, axis=1))
