"""What the page shows beside the metrics: examples, split counts, refused inputs and where the predictions come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pandas as pd

from stages.corpus.leaks import Leaks, total
from stages.corpus.quarantine import Quarantine, Row
from stages.errors import InputError
from stages.scoring.tables import CrossTable, in_domain

SYNTHETIC: Final = "Phantom"
"""How the names of drawn datasets begin."""


@dataclass(frozen=True)
class Split:
    """The size of one split; `shared` test questions show an image that is in train, too."""

    axis: str
    slug: str
    train: int
    test: int
    shared: int


@dataclass(frozen=True)
class Example:
    """One completion; `problem` is the question as asked."""

    checkpoint: str
    verdict: str
    question_id: str
    problem: str
    gold: str
    answer: str | None
    output: str


@dataclass(frozen=True)
class Evidence:
    """All that the page is made of."""

    metrics: dict[str, Any]
    crosses: dict[str, CrossTable]
    """Axis -> its checkpoints crossed with its own cells."""
    slices: dict[str, CrossTable]
    """Axis -> its checkpoints crossed with the cells of the other axis."""
    logs: dict[str, pd.DataFrame]
    splits: list[Split]
    quarantine: list[Quarantine]
    examples: list[Example]
    origins: list[tuple[list[str], dict[str, Any]]]
    """Checkpoints whose predictions have the same provenance, and it."""
    synthetic: float
    """Share of the test questions that are about drawn phantoms, from the names of their datasets."""


def count_split(axis: str, slug: str, train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> Split:
    """Count the questions of one split, and those in test whose image was trained on."""
    trained = {question["image"] for question in train}
    return Split(axis, slug, len(train), len(test), sum(question["image"] in trained for question in test))


def splits_used(kind: str, splits: Sequence[Split], leaks: Mapping[str, Leaks]) -> dict[str, Any]:
    """For metrics.json: the kind of split, and of each kind and axis how many test questions there are and are known from training.

    `shared` is counted anew from the split files that were used. Raises InputError if it is not what `leaks` says of them.
    """
    summed = {each: {axis: total(slugs.values()) for axis, slugs in axes.items()} for each, axes in leaks.items()}
    for split in splits:
        told = leaks[kind][split.axis][split.slug]
        if (told.test, told.image) != (split.test, split.shared):
            raise InputError(
                f"the {kind} split {split.axis}/{split.slug} has {split.test} test questions, {split.shared} with an image of train, but "
                f"its count of leaks says {told.test} and {told.image}: run `dvc repro --force splits`"
            )
    return {"kind": kind, "leaks": {each: {axis: asdict(leak) for axis, leak in axes.items()} for each, axes in summed.items()}}


def pick_examples(predictions: Mapping[str, pd.DataFrame], axes: Mapping[str, str], problems: Mapping[str, str]) -> list[Example]:
    """Of each checkpoint the first right, wrong and unreadable completion in-domain, by question id."""
    examples = []
    for name, axis in axes.items():
        rows = in_domain(predictions[name], axis, name).sort_values("question_id")
        read = rows["answer"].notna()
        for verdict, chosen in (("right", rows[rows["correct"]]), ("wrong", rows[read & ~rows["correct"]]), ("unreadable", rows[~read])):
            for row in chosen.head(1).to_dict("records"):
                answer = row["answer"] if verdict != "unreadable" else None
                question = row["question_id"]
                examples.append(Example(name, verdict, question, problems[question], row["gold"], answer, row["output"]))
    return examples


def count_reasons(quarantine: Sequence[Quarantine]) -> list[tuple[str, int, Row]]:
    """Each reason for a refusal with its number and its first example, the most frequent first."""
    rows: dict[str, list[Row]] = {}
    for account in quarantine:
        for row in account.rows:
            rows.setdefault(row.why, []).append(row)
    return [(why, len(same), same[0]) for why, same in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))]


def group_origins(origins: Mapping[str, dict[str, Any]]) -> list[tuple[list[str], dict[str, Any]]]:
    """Put together the checkpoints whose predictions have the same provenance."""
    groups: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name, origin in origins.items():
        groups.setdefault(json.dumps(origin, sort_keys=True), ([], origin))[0].append(name)
    return list(groups.values())


def synthetic_share(predictions: pd.DataFrame) -> float:
    """Share of the questions whose dataset is named as a drawn one."""
    return float(predictions["dataset"].str.startswith(SYNTHETIC).mean())
