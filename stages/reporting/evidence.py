"""Evidence shown beside the metrics: examples, split sizes, refused inputs, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import pandas as pd

from stages.core import layout
from stages.core.errors import InputError
from stages.corpus.quarantine.ledger import Quarantine, Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.splitting.data_tests import Results
from stages.corpus.splitting.leaks import KnownPatients, Leaks, all_patients, total
from stages.reporting.examples.cases import Case
from stages.scoring.tables import (
    CELLS,
    CrossTable,
    Target,
    cross_table,
    cross_to_base,
    cross_visual_gain,
)
from stages.taxonomy import Axes

SYNTHETIC: Final = "Phantom"
"""Prefix of the names of synthetic datasets."""
EXAMPLES: Final = 3
"""Examples of refused records per source set and reason."""


@dataclass(frozen=True)
class SplitSize:
    """Questions in one split; `shared` counts test questions whose image is also in train."""

    axis: str
    slug: str
    train: int
    test: int
    shared: int


@dataclass(frozen=True)
class Refusals:
    """Refused records of one source set and reason: count, records read from the set, examples."""

    dataset: str
    reason: Reason
    count: int
    read: int
    examples: tuple[Row, ...]

    @property
    def share(self) -> float:
        """Refused share of the records read from the set."""
        return self.count / self.read


@dataclass(frozen=True)
class Tables:
    """The cross tables of one axis, shown as heatmaps."""

    accuracy: CrossTable
    visual_gain: CrossTable
    to_base: CrossTable
    slices: CrossTable
    """Accuracies of the same checkpoints on the cells of the other axis."""


@dataclass(frozen=True)
class Evidence:
    """All content of the report."""

    metrics: dict[str, Any]
    tables: dict[str, Tables]
    """Axis -> its tables."""
    logs: dict[str, pd.DataFrame]
    splits: list[SplitSize]
    quarantine: list[Quarantine]
    data_tests: Results | None
    """Results of the data tests; None if missing."""
    cases: list[Case]
    outputs: dict[tuple[str, str], str]
    """(checkpoint, question id) -> output, for the examples of triggered indicators."""
    origins: dict[str, dict[str, Any]]
    """Checkpoint, "base" first -> provenance of its predictions."""
    weights: dict[str, dict[str, Any]]
    """Checkpoint, "base" first -> provenance of its weights; those without one are absent."""
    synthetic: float
    """Share of test questions of synthetic datasets, recognized by the prefix `SYNTHETIC`."""
    missing: list[str]
    """Descriptions of the parts that this report lacks."""
    folds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Row of a cross-validation -> its checkpoints."""
    shows_images: bool = True
    """Whether the page contains images and context of the examples (report.images)."""


def count_split(
    axis: str, slug: str, train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]
) -> SplitSize:
    """Count the questions of one split, and those in test whose image is in train."""
    trained = {question["image"] for question in train}
    shared = sum(question["image"] in trained for question in test)
    return SplitSize(axis, slug, len(train), len(test), shared)


def pool_sizes(folds: Sequence[SplitSize]) -> SplitSize:
    """The size of a split in a cross-validation: mean of train, all that is tested."""
    train = round(sum(each.train for each in folds) / len(folds))
    test, shared = sum(each.test for each in folds), sum(each.shared for each in folds)
    return replace(folds[0], train=train, test=test, shared=shared)


def splits_used(
    kind: str,
    splits: Sequence[SplitSize],
    leaks: Mapping[str, Leaks],
    patients: Mapping[str, KnownPatients],
) -> dict[str, Any]:
    """For metrics.json: the kind of split, leaked questions per kind and axis, known patients.

    Raises InputError if `leaks` disagrees with `splits`, counted from the split files in use.
    """
    for split in splits:
        leak = leaks[kind][split.axis][split.slug]
        if (leak.test, leak.image) != (split.test, split.shared):
            raise InputError(
                f"the {kind} split {split.axis}/{split.slug} has {split.test} test questions,"
                f" {split.shared} with an image of train, but {layout.LEAKS} has {leak.test} and"
                f" {leak.image}: run `dvc repro --force splits`"
            )
    totals = {
        each: {axis: asdict(total(slugs.values())) for axis, slugs in axes.items()}
        for each, axes in leaks.items()
    }
    by_dataset = {name: asdict(each) for name, each in patients.items()}
    known = {**asdict(all_patients(patients)), "by_dataset": by_dataset}
    return {"kind": kind, "leaks": totals, "patients": known}


def cross_tables(
    predictions: Mapping[str, pd.DataFrame], targets: Mapping[str, Target], axes: Axes
) -> dict[str, Tables]:
    """The cross tables of each axis that has checkpoints."""
    tables = {}
    for axis, other in zip(CELLS, reversed(CELLS), strict=True):
        of_axis = {
            name: rows
            for name, rows in predictions.items()
            if name == "base" or targets[name].axis == axis
        }
        if len(of_axis) == 1:
            continue
        accuracy = cross_table(of_axis, axis, CELLS[axis], axes, targets)
        tables[axis] = Tables(
            accuracy=accuracy,
            visual_gain=cross_visual_gain(of_axis, axis, CELLS[axis], axes, targets),
            to_base=cross_to_base(accuracy),
            slices=cross_table(of_axis, axis, CELLS[other], axes),
        )
    return tables


def outputs_of_indicators(
    metrics: Mapping[str, Any], predictions: Mapping[str, pd.DataFrame]
) -> dict[tuple[str, str], str]:
    """Outputs for the example questions of triggered indicators."""
    examples = []
    for name, entry in metrics["checkpoints"].items():
        for indicator in entry["hacking"]:
            if indicator["triggered"]:
                examples += [(name, question_id) for question_id in indicator["question_ids"]]
    outputs = {
        name: predictions[name].set_index("question_id")["output"]
        for name in {name for name, _ in examples}
    }
    return {(name, each): str(outputs[name][each]) for name, each in examples}


def count_refusals(quarantine: Sequence[Quarantine]) -> list[Refusals]:
    """Refusals by source set and reason, most frequent first, as shares of records read."""
    rows: dict[tuple[str, Reason], list[Row]] = {}
    read: dict[str, int] = {}
    for account in quarantine:
        for name, counts in account.sets.items():
            # the first account is that of stage download, which reads all records
            read.setdefault(name, counts.read)
        for row in account.rows:
            rows.setdefault((row.set, row.reason), []).append(row)
    ordered = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        Refusals(name, reason, len(same), read[name], tuple(same[:EXAMPLES]))
        for (name, reason), same in ordered
    ]


def group_origins(origins: Mapping[str, dict[str, Any]]) -> list[tuple[list[str], dict[str, Any]]]:
    """Group the checkpoints whose predictions have the same provenance."""
    groups: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name, origin in origins.items():
        groups.setdefault(json.dumps(origin, sort_keys=True), ([], origin))[0].append(name)
    return list(groups.values())


def synthetic_share(predictions: pd.DataFrame) -> float:
    """Share of the questions whose dataset is synthetic by its name."""
    return float(predictions["dataset"].str.startswith(SYNTHETIC).mean())
