"""Cell-by-cell comparison of two runs: differences in accuracy with paired intervals.

Both runs have answered the same questions, so every difference is paired: its interval resamples
images with all their questions, and McNemar's test counts the questions that only one of the two
has right, adjusted after Holm over the cells of a table. What Med-R1 printed of No-Think against
Think is no part of this: it comes from `published`, with source and caveat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from stages.core.errors import InputError
from stages.scoring.published import NO_THINK_MINUS_THINK, PublishedTable
from stages.scoring.statistics import cluster_interval, holm, mcnemar, paired_interval
from stages.scoring.tables import CELLS, tested
from stages.taxonomy import AXES

BASE: Final = "base"
FACTS: Final = {
    "split kind": ("params", "splits.kind"),
    "corpus": ("corpus",),
    "prompt style": ("params", "prompt", "style"),
}
"""What one run has in common -> where the provenance of its predictions says it."""
_UNSAID: Final = object()
SHARED: Final = ("split kind", "corpus")
"""What two runs must have in common to be compared."""


@dataclass(frozen=True)
class RunPredictions:
    """Predictions of one run by checkpoint.

    `source`: their folder; `facts`: the values of `FACTS`.
    """

    source: str
    predictions: Mapping[str, pd.DataFrame]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One checkpoint on the test questions of one split; accuracies and differences from 0 to 1.

    `difference` is the first run's accuracy minus the second's, `low` and `high` its 95% interval;
    `won` and `lost` count questions that only the first, or only the second, has right; `p` is
    McNemar's, `p_holm` adjusted over its table (the base's row by itself).
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
    """All cells of one axis, the base's first, and means over trained checkpoints.

    A mean over no cells is left out.
    """

    axis: str
    cells: list[Cell]
    means: dict[str, Mean]


MEANS: Final[dict[str, Callable[[str, str], bool]]] = {
    "in-domain": lambda trained, tested: trained == tested,
    "cross-domain": lambda trained, tested: trained != tested,
    "all cells": lambda trained, tested: True,
}
"""Mean -> which cells, by trained and tested, it is over; as `PublishedTable` has them."""


def common_facts(provenances: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """One value for each of `FACTS` from the provenance of one run's files.

    InputError names the file that does not say, or the two that say otherwise.
    """
    values: dict[str, dict[str, str]] = {name: {} for name in FACTS}
    for path, provenance in provenances.items():
        for name, keys in FACTS.items():
            value: Any = provenance
            for key in keys:
                value = value.get(key, _UNSAID) if isinstance(value, Mapping) else _UNSAID
            if value is _UNSAID:
                raise InputError(
                    f"{path} does not say with which {name} it was made; make it again with `dvc"
                    " repro evaluate@<checkpoint>`"
                )
            values[name].setdefault(str(value), path)
    for name, by_file in values.items():
        if len(by_file) > 1:
            (one, first), (other, second), *_ = by_file.items()
            raise InputError(
                f"{first} and {second} are in one directory, but the {name} is {one} in the first"
                f" and {other} in the second: compare runs that were evaluated completely, with"
                " `dvc repro`"
            )
    return {name: next(iter(by_file)) for name, by_file in values.items()}


def check_comparable(first: RunPredictions, second: RunPredictions) -> None:
    """Raise InputError unless splits, corpus, checkpoints, questions and gold agree."""
    for name in SHARED:
        if first.facts[name] != second.facts[name]:
            raise InputError(
                f"{first.source} has the {name} {first.facts[name]}, {second.source}"
                f" {second.facts[name]}: answers to other questions cannot be paired; evaluate both"
                " on the same splits (splits.kind in params.yaml, data.dvc)"
            )
    for one, other in ((first, second), (second, first)):
        if missing := [name for name in one.predictions if name not in other.predictions]:
            raise InputError(
                f"{other.source}/{missing[0]}.parquet not found, but {one.source} has it; make it"
                f" with `dvc repro evaluate@{missing[0]}` there, or compare directories of the same"
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
    first: RunPredictions, second: RunPredictions, samples: int, seed: int
) -> list[Comparison]:
    """Every axis that has a checkpoint in both runs; `samples` resamples a cell, drawn from `seed`.

    See `check_comparable` for errors.
    """
    check_comparable(first, second)
    compared = []
    for axis, slugs in AXES.items():
        names = [name for name in slugs if name in first.predictions]
        if names:
            pairs = {
                name: _pair(first, second, name, axis)
                for name in ([BASE] if BASE in first.predictions else []) + names
            }
            compared.append(_compare_axis(axis, pairs, samples, seed))
    if not compared:
        raise InputError(
            f"{first.source} and {second.source} have no checkpoint in common but the base: train"
            " and evaluate some"
        )
    return compared


def published_table(axis: str) -> PublishedTable:
    """Med-R1's printed differences of No-Think minus Think, in percentage points."""
    return NO_THINK_MINUS_THINK[axis]


def _check_questions(
    rows: pd.DataFrame, others: pd.DataFrame, source: str, other_source: str
) -> None:
    columns = ["gold", "image", *(f"{axis}_test" for axis in AXES)]
    one, other = (each.set_index("question_id")[columns] for each in (rows, others))
    for here, there, has, lacks in (
        (one, other, source, other_source),
        (other, one, other_source, source),
    ):
        if len(absent := here.index.difference(there.index)):
            raise InputError(
                f"{lacks}: question {absent[0]!r} is one of {len(absent)} that only {has} has;"
                " evaluate both on the same splits"
            )
    for column in columns:
        own, theirs = np.asarray(one[column]), np.asarray(other.loc[one.index, column])
        if len(differing := np.flatnonzero(own != theirs)):
            at = differing[0]
            raise InputError(
                f"{other_source}: question {one.index[at]!r}: {column} {str(theirs[at])!r}, but"
                f" {str(own[at])!r} in {source}; evaluate both on the same splits"
            )


def _pair(first: RunPredictions, second: RunPredictions, name: str, axis: str) -> pd.DataFrame:
    """One row a test question of the axis: its cell, its image, and whether each run is right."""
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
    axis: str, pairs: Mapping[str, pd.DataFrame], samples: int, seed: int
) -> Comparison:
    tests: dict[tuple[str, str], pd.DataFrame] = {}
    for checkpoint, rows in pairs.items():
        for cell in AXES[axis]:
            if (rows["cell"] == cell).any():
                tests[checkpoint, cell] = rows[rows["cell"] == cell]
    p_values = {
        pair: mcnemar(rows["first"].to_numpy(bool), rows["second"].to_numpy(bool)).p
        for pair, rows in tests.items()
    }
    adjusted: dict[str, float] = {}
    for family in (
        [pair for pair in tests if pair[0] == BASE],
        [pair for pair in tests if pair[0] != BASE],
    ):
        adjusted |= holm({_key(pair): p_values[pair] for pair in family})
    cells = [
        _cell(*pair, rows, adjusted[_key(pair)], samples, seed) for pair, rows in tests.items()
    ]
    trained = {pair: rows for pair, rows in tests.items() if pair[0] != BASE}
    means = {
        name: _mean([rows for pair, rows in trained.items() if chosen(*pair)], samples, seed)
        for name, chosen in MEANS.items()
    }
    return Comparison(axis, cells, {name: mean for name, mean in means.items() if mean is not None})


def _key(pair: tuple[str, str]) -> str:
    return "/".join(pair)


def _cell(
    trained: str, cell: str, rows: pd.DataFrame, p_holm: float, samples: int, seed: int
) -> Cell:
    first, second = rows["first"].to_numpy(bool), rows["second"].to_numpy(bool)
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


def _mean(tables: Sequence[pd.DataFrame], samples: int, seed: int) -> Mean | None:
    """Mean difference of cells with its interval.

    Images are resampled with their questions in all cells at once, cell sizes held fixed.
    """
    if not tables:
        return None
    # a question counts in each cell it stands in, by one over the cell's size
    shares = pd.concat(
        [
            (rows["first"].astype(float) - rows["second"].astype(float)) / (len(rows) * len(tables))
            for rows in tables
        ],
        ignore_index=True,
    )
    images = pd.concat([rows["image"] for rows in tables], ignore_index=True)
    summed = shares.groupby(images.to_numpy()).sum()
    low, high = cluster_interval(
        summed.to_numpy() * len(summed), np.arange(len(summed)), samples, seed
    )
    return Mean(len(tables), float(summed.sum()), low, high)


def rows_of(cells: Iterable[Cell], digits: int) -> list[dict[str, Any]]:
    """Cells as plain values, floats rounded; p values with four significant digits."""

    def plain(name: str, value: Any) -> Any:
        if name.startswith("p"):
            return float(f"{value:.4g}")
        return round(value, digits) + 0.0 if isinstance(value, float) else value

    return [{name: plain(name, value) for name, value in vars(cell).items()} for cell in cells]
