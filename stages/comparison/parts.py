"""What images, their number and order, and the context are worth in two runs, beside each other.

On a checkpoint's own test questions about several images, and on those with context, each run's
gain of a part is its accuracy as asked minus that in a variant without it, as in the report. The
difference of the two runs' gains is paired question by question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.comparison.pairs import RunPredictions, mean_over_cells
from stages.reporting.labels import VARIANT_LABELS, percent
from stages.reporting.parts import KIND_LABELS
from stages.reporting.tables import Column, Sheet, SheetCell, SheetRow, difference
from stages.scoring.contributions import AS_ASKED, KINDS
from stages.scoring.statistics import cluster_interval
from stages.scoring.tables import Target, own_questions, with_ablation
from stages.scoring.variants import has

MEAN: Final = "mean"
"""In place of a checkpoint: the unweighted mean over those of the axis that have such questions."""


class Interval(NamedTuple):
    """A gain or a difference of gains from -1 to 1, with its 95% interval; None where unknown."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PartComparison:
    """A part of some questions in two runs.

    `trained`: the checkpoint, or `MEAN`; `kind`: of question, one of `KINDS`; `variant`: what the
    gains are over, or `AS_ASKED`, of which `first` and `second` are the accuracies. They are None
    for a run that was not asked in the variant, and so is `difference`.
    """

    trained: str
    kind: str
    variant: str
    n: int
    images: int
    first: Interval | None
    second: Interval | None
    difference: Interval | None


class _Values(NamedTuple):
    """Gain of each run on each question (n,), as integers; None if it was not asked."""

    first: NDArray[np.int64] | None
    second: NDArray[np.int64] | None
    images: pd.Series[Any]

    @property
    def difference(self) -> NDArray[np.int64] | None:
        if self.first is None or self.second is None:
            return None
        return self.first - self.second


def compare_parts(
    first: RunPredictions,
    second: RunPredictions,
    axis: str,
    slugs: Sequence[str],
    samples: int,
    seed: int,
) -> list[PartComparison]:
    """All parts of the checkpoints of one axis, the means over several of them first.

    Empty if no own test has questions about several images or with context. Runs must have passed
    `check_comparable`; `samples` and `seed` are those of the bootstrap.
    """
    found: dict[tuple[str, str], dict[str, _Values]] = {}
    for name in slugs:
        if name not in first.predictions:
            continue
        target = Target(axis, name)
        runs = [own_questions(run.predictions[name], target) for run in (first, second)]
        for kind, variant, values in _values(*runs):
            found.setdefault((kind, variant), {})[name] = values
    means = []
    parts = []
    for (kind, variant), by_name in found.items():
        if len(by_name) > 1:
            means.append(_mean(kind, variant, list(by_name.values()), samples, seed))
        for name, values in by_name.items():
            parts.append(_part(name, kind, variant, values, samples, seed))
    return [*means, *sorted(parts, key=lambda part: (slugs.index(part.trained), part.kind))]


def _values(first: pd.DataFrame, second: pd.DataFrame) -> Iterator[tuple[str, str, _Values]]:
    """Kind of question, variant, and the values of the questions that are of the kind."""
    for kind, taken in KINDS.items():
        of_kind = first.index[has(first, taken.column) & has(second, taken.column)]
        if not len(of_kind):
            continue
        runs = [run.loc[of_kind] for run in (first, second)]
        correct = [run["correct"].to_numpy(bool).astype(np.int64) for run in runs]
        yield kind, AS_ASKED, _Values(correct[0], correct[1], runs[0]["image"])
        for variant in taken.parts:
            asked = [with_ablation(run, variant) for run in runs]
            known = [rows for rows in asked if len(rows)]
            if not known:
                continue
            questions = known[0].index.intersection(known[-1].index)
            gains = [_gains(rows, questions, variant) if len(rows) else None for rows in asked]
            yield kind, variant, _Values(gains[0], gains[1], runs[0].loc[questions, "image"])


def _gains(rows: pd.DataFrame, questions: pd.Index[Any], variant: str) -> NDArray[np.int64]:
    own = rows.loc[questions]
    correct, other = (
        own[name].to_numpy(bool).astype(np.int64) for name in ("correct", f"{variant}_correct")
    )
    return np.asarray(correct - other, dtype=np.int64)


def _part(
    name: str, kind: str, variant: str, values: _Values, samples: int, seed: int
) -> PartComparison:
    images = int(values.images.nunique())

    def interval(numbers: NDArray[np.int64] | None) -> Interval | None:
        if numbers is None:
            return None
        low = high = None
        if images > 1:  # as in the report: of one image there is nothing to resample
            low, high = cluster_interval(numbers, values.images, samples, seed)
        return Interval(float(numbers.mean()), low, high)

    numbers = (values.first, values.second, values.difference)
    return PartComparison(name, kind, variant, len(values.images), images, *map(interval, numbers))


def _mean(
    kind: str, variant: str, cells: Sequence[_Values], samples: int, seed: int
) -> PartComparison:
    images = pd.concat([each.images for each in cells])

    def interval(numbers: Sequence[NDArray[np.int64] | None]) -> Interval | None:
        known = [
            (pd.Series(each), cell.images)
            for each, cell in zip(numbers, cells, strict=True)
            if each is not None
        ]
        if len(known) < len(cells):
            return None
        if images.nunique() < 2:
            return Interval(float(np.mean([each.mean() for each, _ in known])), None, None)
        mean = mean_over_cells(known, samples, seed)
        return Interval(mean.difference, mean.low, mean.high)

    columns = [
        [getattr(each, name) for each in cells] for name in ("first", "second", "difference")
    ]
    return PartComparison(
        MEAN, kind, variant, len(images), int(images.nunique()), *map(interval, columns)
    )


def parts_sheet(parts: Sequence[PartComparison], name_of: Mapping[str, str]) -> Sheet:
    """A table: a row per checkpoint, kind of question and variant. `name_of`: as it is printed."""
    rows = []
    for part in parts:
        texts = (
            name_of.get(part.trained, part.trained),
            KIND_LABELS[part.kind],
            VARIANT_LABELS[part.variant],
        )
        shown = _accuracy if part.variant == AS_ASKED else _gain
        numbers = (shown(part.first), shown(part.second), _gain(part.difference))
        cells = (*map(SheetCell, texts), SheetCell(part.n), *numbers)
        rows.append(SheetRow(cells))
    text = [Column(name, "text") for name in ("trained", "questions with", "asked")]
    return Sheet((*text, *map(Column, ("n", "A", "B", "A minus B"))), tuple(rows))


def _gain(gain: Interval | None) -> SheetCell:
    return SheetCell() if gain is None else difference(*gain)


def _accuracy(accuracy: Interval | None) -> SheetCell:
    if accuracy is None:
        return SheetCell()
    return SheetCell(percent(accuracy.value), percent(accuracy.low), percent(accuracy.high))


def parts_rows(parts: Sequence[PartComparison], digits: int) -> list[dict[str, Any]]:
    """Parts as plain values: `first`, `first_low` and so on, rounded; None where unknown."""
    rows = []
    for part in parts:
        row = {
            name: value
            for name, value in asdict(part).items()
            if name not in ("first", "second", "difference")
        }
        for name in ("first", "second", "difference"):
            gain = getattr(part, name) or (None, None, None)
            for key, value in zip((name, f"{name}_low", f"{name}_high"), gain, strict=True):
                row[key] = None if value is None else round(value, digits) + 0.0
        rows.append(row)
    return rows
