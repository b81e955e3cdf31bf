"""Cell-by-cell comparison of two runs: differences in accuracy with paired intervals.

Both runs answer the same questions, so every difference is paired. Its interval resamples images
with all their questions; McNemar's test counts the questions that only one of the two answers
correctly, with p values adjusted by Holm over the cells of a table. Med-R1's published differences
of No-Think and Think are separate: they come from `published`, with source and caveat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from stages.core.errors import InputError
from stages.scoring.published.entries import PublishedTable
from stages.scoring.published.med_r1 import NO_THINK_MINUS_THINK
from stages.scoring.statistics import cluster_interval, holm, mcnemar, paired_interval
from stages.scoring.tables import CELLS, tested
from stages.taxonomy import AXIS_NAMES, Axes

BASE: Final = "base"
RUN_PROPERTIES: Final = {
    "split kind": ("params", "splits.kind"),
    "corpus": ("corpus",),
    "prompt style": ("params", "prompt", "style"),
}
"""Property that all predictions of a run share -> its keys in their provenance."""
MUST_MATCH: Final = ("split kind", "corpus")
"""Properties that two runs must share to be compared."""
_MISSING: Final = object()


@dataclass(frozen=True)
class RunPredictions:
    """Predictions of one run by checkpoint, their folder, and the values of `RUN_PROPERTIES`.

    A checkpoint is named by the split it is trained on, or `BASE`.
    """

    source: str
    predictions: Mapping[str, pd.DataFrame]
    properties: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One checkpoint on the test questions of one split; accuracies and differences from 0 to 1.

    `difference` is the first run's accuracy minus the second's, `low` and `high` its 95% interval.
    `won` and `lost` count questions that only the first or only the second run answers correctly.
    `p` is McNemar's, `p_holm` is adjusted over the table (the base's row is a family of its own).
    """

    trained: str
    tested: str
    n: int
    images: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    won: int
    lost: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Mean:
    """An unweighted mean of differences over `cells` cells, with its 95% interval."""

    cells: int
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """All cells of one axis with its slugs, the base's first, and the `MEANS` that have cells."""

    axis: str
    slugs: tuple[str, ...]
    cells: list[Cell]
    means: dict[str, Mean]


MEANS: Final[dict[str, Callable[[str, str], bool]]] = {
    "in-domain": lambda trained, tested: trained == tested,
    "cross-domain": lambda trained, tested: trained != tested,
    "all cells": lambda trained, tested: True,
}
"""Mean -> whether it includes a cell (trained, tested); the same means as `PublishedTable`."""


def common_properties(provenances: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The `RUN_PROPERTIES` of one run from the provenance of its files, by path.

    Raises InputError, naming the files, if one lacks a property or two differ.
    """
    paths_by_value: dict[str, dict[str, str]] = {name: {} for name in RUN_PROPERTIES}
    for path, provenance in provenances.items():
        for name, keys in RUN_PROPERTIES.items():
            value: Any = provenance
            for key in keys:
                value = value.get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
            if value is _MISSING:
                raise InputError(
                    f"{path}: its provenance lacks the {name}; re-create it with `dvc repro"
                    " evaluate@<checkpoint>`"
                )
            paths_by_value[name].setdefault(str(value), path)
    for name, paths in paths_by_value.items():
        if len(paths) > 1:
            (one, first), (other, second), *_ = paths.items()
            raise InputError(
                f"{first} and {second} are in one directory, but the {name} is {one} in the first"
                f" and {other} in the second: compare runs that were evaluated completely, with"
                " `dvc repro`"
            )
    return {name: next(iter(paths)) for name, paths in paths_by_value.items()}


def check_comparable(first: RunPredictions, second: RunPredictions) -> None:
    """Raise InputError unless splits, corpus, checkpoints, questions and gold agree."""
    for name in MUST_MATCH:
        if first.properties[name] != second.properties[name]:
            raise InputError(
                f"{first.source} has the {name} {first.properties[name]}, {second.source}"
                f" {second.properties[name]}: answers to different questions cannot be paired;"
                " evaluate both on the same splits (splits.kind in params.yaml, data.dvc)"
            )
    for one, other in ((first, second), (second, first)):
        if missing := [name for name in one.predictions if name not in other.predictions]:
            raise InputError(
                f"{other.source}/{missing[0]}.parquet is missing, but {one.source} has it: run"
                f" `dvc repro evaluate@{missing[0]}` there, or compare directories of the same"
                " checkpoints"
            )
    for name, rows in first.predictions.items():
        _check_questions(
            rows,
            second.predictions[name],
            f"{first.source}/{name}.parquet",
            f"{second.source}/{name}.parquet",
        )


def compare(
    first: RunPredictions, second: RunPredictions, axes: Axes, samples: int, seed: int
) -> list[Comparison]:
    """Compare two runs on every axis of which they have a checkpoint.

    `samples` and `seed` are those of each cell's bootstrap. Raises InputError as
    `check_comparable`, or if there is no checkpoint but the base.
    """
    check_comparable(first, second)
    comparisons = []
    for axis, slugs in axes.items():
        names = [name for name in slugs if name in first.predictions]
        if not names:
            continue
        if BASE in first.predictions:
            names = [BASE, *names]
        pairs = {name: _pair(first, second, name, axis) for name in names}
        comparisons.append(_compare_axis(axis, slugs, pairs, samples, seed))
    if not comparisons:
        raise InputError(
            f"{first.source} and {second.source} have no checkpoint in common but the base: train"
            " and evaluate some"
        )
    return comparisons


def published_table(axis: str) -> PublishedTable:
    """Med-R1's published differences of No-Think minus Think, in percentage points."""
    return NO_THINK_MINUS_THINK[axis]


def axis_named(rows: pd.DataFrame, checkpoint: str) -> str | None:
    """The axis of the split that a checkpoint is named by; None if no tested cell has its name."""
    named = (
        axis for axis, column in CELLS.items() if (tested(rows, axis)[column] == checkpoint).any()
    )
    return next(named, None)


def axes_of(runs: Iterable[RunPredictions], order: Axes) -> Axes:
    """Axis -> the slugs in the predictions, first those in `order`, then others by name."""
    found: dict[str, set[str]] = {axis: set() for axis in CELLS}
    for run in runs:
        for rows in run.predictions.values():
            for axis, column in CELLS.items():
                found[axis].update(map(str, tested(rows, axis)[column].unique()))
    return {
        axis: (
            *(slug for slug in order[axis] if slug in slugs),
            *sorted(slugs.difference(order[axis])),
        )
        for axis, slugs in found.items()
    }


def _check_questions(
    rows: pd.DataFrame, others: pd.DataFrame, source: str, other_source: str
) -> None:
    columns = ["gold", "image", *(f"{axis}_test" for axis in AXIS_NAMES)]
    one, other = (each.set_index("question_id")[columns] for each in (rows, others))
    for here, there, has, lacks in (
        (one, other, source, other_source),
        (other, one, other_source, source),
    ):
        missing = here.index.difference(there.index)
        if len(missing):
            raise InputError(
                f"{lacks}: question {missing[0]!r} is one of {len(missing)} that only {has} has;"
                " evaluate both on the same splits"
            )
    for column in columns:
        own = np.asarray(one[column])
        theirs = np.asarray(other.loc[one.index, column])
        differing = np.flatnonzero(own != theirs)
        if len(differing):
            first = differing[0]
            raise InputError(
                f"{other_source}: question {one.index[first]!r}: {column} {str(theirs[first])!r},"
                f" but {str(own[first])!r} in {source}; evaluate both on the same splits"
            )


def _pair(first: RunPredictions, second: RunPredictions, name: str, axis: str) -> pd.DataFrame:
    """One row per test question of the axis: cell, image, and whether each run is correct."""
    own = tested(first.predictions[name], axis).set_index("question_id").sort_index()
    other = second.predictions[name].set_index("question_id").loc[own.index]
    return pd.DataFrame(
        {
            "cell": own[CELLS[axis]],
            "image": own["image"],
            "first": own["correct"],
            "second": other["correct"],
        }
    )


def _compare_axis(
    axis: str, slugs: Sequence[str], pairs: Mapping[str, pd.DataFrame], samples: int, seed: int
) -> Comparison:
    tests: dict[tuple[str, str], pd.DataFrame] = {}
    for checkpoint, rows in pairs.items():
        for cell in slugs:
            if (rows["cell"] == cell).any():
                tests[checkpoint, cell] = rows[rows["cell"] == cell]
    p_values = {
        pair: mcnemar(rows["first"].to_numpy(bool), rows["second"].to_numpy(bool)).p
        for pair, rows in tests.items()
    }
    adjusted: dict[str, float] = {}
    for of_base in (True, False):
        family = [pair for pair in tests if (pair[0] == BASE) == of_base]
        adjusted |= holm({_key(pair): p_values[pair] for pair in family})
    cells = [
        _cell(*pair, rows, adjusted[_key(pair)], samples, seed) for pair, rows in tests.items()
    ]
    trained = {pair: rows for pair, rows in tests.items() if pair[0] != BASE}
    means = {}
    for name, includes in MEANS.items():
        tables = [rows for pair, rows in trained.items() if includes(*pair)]
        if tables:
            means[name] = _mean(tables, samples, seed)
    return Comparison(axis, tuple(slugs), cells, means)


def _key(pair: tuple[str, str]) -> str:
    return "/".join(pair)


def _cell(
    trained: str, cell: str, rows: pd.DataFrame, p_holm: float, samples: int, seed: int
) -> Cell:
    first = rows["first"].to_numpy(bool)
    second = rows["second"].to_numpy(bool)
    low, high = paired_interval(first, second, samples, seed, clusters=rows["image"])
    test = mcnemar(first, second)
    return Cell(
        trained=trained,
        tested=cell,
        n=len(rows),
        images=int(rows["image"].nunique()),
        first=float(first.mean()),
        second=float(second.mean()),
        difference=float(int(first.sum()) - int(second.sum())) / len(rows),
        low=low,
        high=high,
        won=test.won,
        lost=test.lost,
        p=test.p,
        p_holm=p_holm,
    )


def _mean(tables: Sequence[pd.DataFrame], samples: int, seed: int) -> Mean:
    """Mean difference of cells with its interval."""
    cells = [
        (rows["first"].astype(float) - rows["second"].astype(float), rows["image"])
        for rows in tables
    ]
    return mean_over_cells(cells, samples, seed)


def mean_over_cells(
    cells: Sequence[tuple[pd.Series[Any], pd.Series[Any]]], samples: int, seed: int
) -> Mean:
    """Unweighted mean of the means of some cells, with its interval.

    `cells`: a value per question, and its image. Images are resampled with their questions in all
    cells at once; cell sizes are fixed.
    """
    # a question counts in each of its cells with the weight 1 / (cell size * number of cells)
    weighted = [values / (len(values) * len(cells)) for values, _ in cells]
    shares = pd.concat(weighted, ignore_index=True)
    images = pd.concat([own for _, own in cells], ignore_index=True)
    summed = shares.groupby(images.to_numpy()).sum()
    low, high = cluster_interval(
        summed.to_numpy() * len(summed), np.arange(len(summed)), samples, seed
    )
    return Mean(len(cells), float(summed.sum()), low, high)


def rows_of(cells: Iterable[Cell], digits: int) -> list[dict[str, Any]]:
    """Cells as plain values: floats rounded to `digits`, p values to four significant digits."""

    def plain(name: str, value: Any) -> Any:
        if name in ("p", "p_holm"):
            return float(f"{value:.4g}")
        return round(value, digits) + 0.0 if isinstance(value, float) else value

    return [{name: plain(name, value) for name, value in vars(cell).items()} for cell in cells]
