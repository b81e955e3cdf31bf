"""Evidence beside the metrics: examples, split counts, refused inputs, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pandas as pd

from stages.core.errors import InputError
from stages.corpus.quarantine.ledger import Quarantine, Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.splitting.data_tests import Results
from stages.corpus.splitting.leaks import Leaks, total
from stages.predictions.schema import ABLATIONS
from stages.scoring.tables import (
    CELLS,
    CrossTable,
    Target,
    cross_table,
    cross_to_base,
    cross_visual_gain,
    in_domain,
)

SYNTHETIC: Final = "Phantom"
"""How the names of drawn datasets begin."""
EXAMPLES: Final = 3
"""Refused records that are shown of a source set and reason."""


@dataclass(frozen=True)
class Split:
    """The size of one split; `shared` test questions show an image that is in train, too."""

    axis: str
    slug: str
    train: int
    test: int
    shared: int


@dataclass(frozen=True)
class Refusals:
    """Refused records of one source set and reason: count, number read, examples."""

    dataset: str
    reason: Reason
    count: int
    read: int
    examples: tuple[Row, ...]

    @property
    def share(self) -> float:
        """Of the records of the set that were read."""
        return self.count / self.read


@dataclass(frozen=True)
class Case:
    """One question and a checkpoint's output.

    `problem`: the question's text, None if unavailable.
    """

    checkpoint: str
    verdict: str
    question_id: str
    modality: str
    question_type: str
    problem: str | None
    gold: str
    answer: str | None
    output: str
    without: tuple[str, str] | None
    """With "only without its image": how it was asked then ("blank", "shuffled"), and what was
    written.
    """
    image: str
    """Path of the image, as in the split."""


@dataclass(frozen=True)
class Tables:
    """What is shown as heatmaps, of one axis."""

    accuracy: CrossTable
    visual_gain: CrossTable
    to_base: CrossTable
    slices: CrossTable
    """Accuracies of the same checkpoints on the cells of the other axis."""


@dataclass(frozen=True)
class Evidence:
    """All that the report is made of."""

    metrics: dict[str, Any]
    tables: dict[str, Tables]
    """Axis -> its tables."""
    logs: dict[str, pd.DataFrame]
    splits: list[Split]
    quarantine: list[Quarantine]
    data_tests: Results | None
    """What the tests of the corpus found; None if that is not at hand."""
    cases: list[Case]
    outputs: dict[tuple[str, str], str]
    """(checkpoint, question id) -> output, of the examples of signs of reward hacking."""
    origins: dict[str, dict[str, Any]]
    """Checkpoint, "base" first -> provenance of its predictions."""
    trained: dict[str, dict[str, Any]]
    """Checkpoint, "base" first -> provenance of its weights, as far as it is at hand."""
    synthetic: float
    """Share of test questions about drawn phantoms, by the names of their datasets."""
    missing: list[str]
    """Parts that are not in this report because they were not at hand, in words."""


def count_split(
    axis: str, slug: str, train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]
) -> Split:
    """Count the questions of one split, and those in test whose image was trained on."""
    trained = {question["image"] for question in train}
    return Split(
        axis, slug, len(train), len(test), sum(question["image"] in trained for question in test)
    )


def splits_used(kind: str, splits: Sequence[Split], leaks: Mapping[str, Leaks]) -> dict[str, Any]:
    """For metrics.json: the kind of split, and test and leaked questions per kind and axis.

    `shared` is counted again from the split files that were used. Raises InputError if it is not
    what `leaks` says of them.
    """
    summed = {
        each: {axis: total(slugs.values()) for axis, slugs in axes.items()}
        for each, axes in leaks.items()
    }
    for split in splits:
        told = leaks[kind][split.axis][split.slug]
        if (told.test, told.image) != (split.test, split.shared):
            raise InputError(
                f"the {kind} split {split.axis}/{split.slug} has {split.test} test questions,"
                f" {split.shared} with an image of train, but its count of leaks says {told.test}"
                f" and {told.image}: run `dvc repro --force splits`"
            )
    return {
        "kind": kind,
        "leaks": {
            each: {axis: asdict(leak) for axis, leak in axes.items()}
            for each, axes in summed.items()
        },
    }


def make_tables(
    predictions: Mapping[str, pd.DataFrame], targets: Mapping[str, Target]
) -> dict[str, Tables]:
    """The tables of each axis that has checkpoints."""
    tables = {}
    for axis, other in zip(CELLS, reversed(CELLS), strict=True):
        used = {
            name: rows
            for name, rows in predictions.items()
            if name == "base" or targets[name].axis == axis
        }
        if len(used) == 1:
            continue
        accuracy = cross_table(used, axis, CELLS[axis], targets)
        visual = cross_visual_gain(used, axis, CELLS[axis], targets)
        tables[axis] = Tables(
            accuracy, visual, cross_to_base(accuracy), cross_table(used, axis, CELLS[other])
        )
    return tables


def pick_cases(
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    problems: Mapping[str, str],
) -> list[Case]:
    """First in-domain case of each verdict per checkpoint, by question id.

    Verdicts: right, wrong, right only without its image, unreadable.
    """
    cases = []
    for name, target in targets.items():
        rows = in_domain(predictions[name], target.axis, target.cell).sort_values("question_id")
        read = rows["answer"].notna()
        blind = {
            variant: ~rows["correct"] & rows[f"{variant}_correct"].eq(other=True)
            for variant in ABLATIONS
        }
        either = blind["blank"] | blind["shuffled"]
        chosen = {
            "right": rows[rows["correct"]],
            "wrong": rows[read & ~rows["correct"] & ~either],
            "right only without its image": rows[either],
            "unreadable": rows[~read & ~either],
        }
        for verdict, found in chosen.items():
            for row in found.head(1).to_dict("records"):
                variant = next(
                    (
                        each
                        for each in reversed(ABLATIONS)
                        if verdict.startswith("right only") and row[f"{each}_correct"] is True
                    ),
                    None,
                )
                cases.append(
                    Case(
                        checkpoint=name,
                        verdict=verdict,
                        **{
                            str(field): row[field]
                            for field in (
                                "question_id",
                                "modality",
                                "question_type",
                                "gold",
                                "output",
                                "image",
                            )
                        },
                        problem=problems.get(row["question_id"]),
                        answer=row["answer"] if isinstance(row["answer"], str) else None,
                        without=(variant, row[f"{variant}_output"]) if variant else None,
                    )
                )
    return cases


def outputs_of_signs(
    metrics: Mapping[str, Any], predictions: Mapping[str, pd.DataFrame]
) -> dict[tuple[str, str], str]:
    """Outputs for the example questions of triggered indicators."""
    named = []
    for name, entry in metrics["checkpoints"].items():
        for indicator in entry["hacking"]:
            if indicator["triggered"]:
                named += [(name, question_id) for question_id in indicator["question_ids"]]
    outputs = {
        name: predictions[name].set_index("question_id")["output"]
        for name in {name for name, _ in named}
    }
    return {(name, each): str(outputs[name][each]) for name, each in named}


def count_refusals(quarantine: Sequence[Quarantine]) -> list[Refusals]:
    """Refusals by source set and reason, most frequent first, as shares of what download read."""
    rows: dict[tuple[str, Reason], list[Row]] = {}
    read: dict[str, int] = {}
    for account in quarantine:
        for name, counts in account.sets.items():
            read.setdefault(name, counts.read)  # download's, which reads all, comes first
        for row in account.rows:
            rows.setdefault((row.set, row.reason), []).append(row)
    ordered = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        Refusals(name, reason, len(same), read[name], tuple(same[:EXAMPLES]))
        for (name, reason), same in ordered
    ]


def group_origins(origins: Mapping[str, dict[str, Any]]) -> list[tuple[list[str], dict[str, Any]]]:
    """Put together the checkpoints whose predictions have the same provenance."""
    groups: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name, origin in origins.items():
        groups.setdefault(json.dumps(origin, sort_keys=True), ([], origin))[0].append(name)
    return list(groups.values())


def synthetic_share(predictions: pd.DataFrame) -> float:
    """Share of the questions whose dataset is named as a drawn one."""
    return float(predictions["dataset"].str.startswith(SYNTHETIC).mean())
