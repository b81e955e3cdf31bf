"""Accuracies from predictions: by modality, question type, dataset, and per checkpoint.

A prediction is one row: what one checkpoint wrote for one question. Every accuracy comes with the
number of questions behind it. A cell without a question has no accuracy, and a macro mean over such
a cell has none either.

Published results are unweighted means over the cells (macro) as far as the source tells (arXiv
2503.13939, released evaluation scripts); the mean over questions (micro) stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd

from stages.core.errors import InputError
from stages.corpus.dataset.problems import LETTERS
from stages.predictions.schema import ABLATIONS
from stages.taxonomy import AXES

CELLS: Final[dict[str, str]] = {"modality": "modality", "task": "question_type"}
"""Axis -> the column that says in which of its cells a question lies."""


Measure = Literal["accuracy", "visual gain", "difference to base"]


@dataclass(frozen=True)
class Target:
    """What a checkpoint was trained for: a cell (slug) of an axis, by a method.

    Its name need not say so.
    """

    axis: str
    cell: str
    method: str = "grpo"


@dataclass(frozen=True)
class Score:
    """Right answers among `n` questions."""

    correct: int
    n: int

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, 0 to 1; None where nothing was asked."""
        return self.correct / self.n if self.n else None


@dataclass(frozen=True)
class CrossTable:
    """One number for several checkpoints on the same questions, cell by cell.

    `values`: checkpoint, "base" first -> cell -> accuracy or difference of accuracies, None where
    there is none; the last cell is "macro", the mean of the others. `questions`: how many there are
    in each cell. `own`: checkpoint -> the cell it was trained on.
    """

    measure: Measure
    values: dict[str, dict[str, float | None]]
    questions: dict[str, int]
    own: dict[str, str]

    @property
    def there(self) -> bool:
        """Is there any number in it."""
        return any(True for _ in self.numbers())

    def numbers(self) -> Iterator[float]:
        """All numbers in it, row by row, without missing ones."""
        for row in self.values.values():
            yield from (value for value in row.values() if value is not None)


def score(predictions: pd.DataFrame) -> Score:
    """The micro score: every question counts once."""
    return Score(int(predictions["correct"].sum()), len(predictions))


def scores_by(
    predictions: pd.DataFrame, column: str, cells: Sequence[str] | None = None
) -> dict[str, Score]:
    """One score per value of `column`.

    With `cells`, exactly these in order, empty ones included.
    """
    by_value = {str(value): score(rows) for value, rows in predictions.groupby(column, sort=True)}
    return by_value if cells is None else {cell: by_value.get(cell, Score(0, 0)) for cell in cells}


def macro(scores: Mapping[str, Score]) -> float | None:
    """Unweighted mean accuracy over cells; None if one is empty, since the mean would differ."""
    return mean_of_all([cell.accuracy for cell in scores.values()])


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean, if there are values and none of them is missing."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def tested(predictions: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The questions in the test splits of one axis, "modality" or "task"."""
    return predictions[predictions[f"{axis}_test"]]


def in_domain(predictions: pd.DataFrame, axis: str, cell: str) -> pd.DataFrame:
    """The questions in the test split of one modality or question type (slug)."""
    rows = tested(predictions, axis)
    return rows[rows[CELLS[axis]] == cell]


def cross_table(
    predictions: Mapping[str, pd.DataFrame],
    axis: str,
    column: str,
    targets: Mapping[str, Target] | None = None,
) -> CrossTable:
    """Cross table of accuracies: base and checkpoints of `axis` against the values of `column`.

    `column` is "modality" or "question_type"; `predictions` holds "base" and checkpoints of `axis`
    only; with `targets`, the table knows which cells are in-domain.
    """
    scores = {
        name: scores_by(tested(rows, axis), column, _cells(column))
        for name, rows in predictions.items()
    }
    values = {
        name: {cell: found.accuracy for cell, found in row.items()} for name, row in scores.items()
    }
    return _crossed(
        "accuracy",
        values,
        {cell: found.n for cell, found in scores["base"].items()},
        column,
        targets,
    )


def cross_visual_gain(
    predictions: Mapping[str, pd.DataFrame],
    axis: str,
    column: str,
    targets: Mapping[str, Target] | None = None,
) -> CrossTable:
    """Cross table of visual gains: accuracy less that with an exchanged image."""
    ablated = {
        name: with_ablation(tested(rows, axis), "shuffled") for name, rows in predictions.items()
    }
    with_image = {name: scores_by(rows, column, _cells(column)) for name, rows in ablated.items()}
    unseen = {
        name: scores_by(without_image(rows, "shuffled"), column, _cells(column))
        for name, rows in ablated.items()
    }
    values = {
        name: {
            cell: _less(found.accuracy, unseen[name][cell].accuracy) for cell, found in row.items()
        }
        for name, row in with_image.items()
    }
    return _crossed(
        "visual gain",
        values,
        {cell: found.n for cell, found in with_image["base"].items()},
        column,
        targets,
    )


def cross_to_base(table: CrossTable) -> CrossTable:
    """The differences of a table of accuracies to its first row, the base, which is not in it."""
    base = table.values["base"]
    rows = {
        name: {cell: _less(value, base[cell]) for cell, value in row.items()}
        for name, row in table.values.items()
        if name != "base"
    }
    return CrossTable("difference to base", rows, table.questions, table.own)


def with_ablation(predictions: pd.DataFrame, variant: str) -> pd.DataFrame:
    """The rows whose question was also asked in this variant, one of `ABLATIONS`."""
    return predictions[predictions[f"{variant}_correct"].notna()]


def without_image(predictions: pd.DataFrame, variant: str) -> pd.DataFrame:
    """Rows of `with_ablation` with the answers of the variant in place of the real ones."""
    return predictions.assign(
        output=predictions[f"{variant}_output"],
        answer=predictions[f"{variant}_answer"],
        correct=predictions[f"{variant}_correct"].astype(bool),
    )


def _cells(column: str) -> tuple[str, ...]:
    return next(AXES[name] for name, own in CELLS.items() if own == column)


def _crossed(
    measure: Measure,
    values: Mapping[str, Mapping[str, float | None]],
    questions: dict[str, int],
    column: str,
    targets: Mapping[str, Target] | None,
) -> CrossTable:
    own = {
        name: targets[name].cell
        for name in values
        if targets and name in targets and CELLS[targets[name].axis] == column
    }
    rows = {name: {**row, "macro": mean_of_all(list(row.values()))} for name, row in values.items()}
    return CrossTable(measure, rows, questions, own)


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def check_predictions(
    predictions: pd.DataFrame, checkpoint: str, axis: str, source: str, cell: str | None = None
) -> None:
    """Validate one checkpoint's predictions on the test questions of its axis ("all" for the base).

    InputError names `source` (the file), the question, the value and the way out: another
    checkpoint's rows, a duplicate question, an unknown modality or question type, a question
    outside the test split, a gold letter that is not offered, an incomplete ablation, no question
    of the `cell` that the checkpoint was trained on (its name, unless given).
    """
    if predictions.empty:
        raise InputError(f"{source}: no predictions in it; {_again(checkpoint)}")
    for name, (wrong, why) in _faults(predictions, checkpoint, axis).items():
        if wrong.any():
            row = predictions[wrong].iloc[0]
            value = row[name].item() if isinstance(row[name], np.generic) else row[name]
            raise InputError(
                f"{source}: question {row['question_id']!r}: {name} {value!r} is {why};"
                f" {_again(checkpoint)}"
            )
    cell = cell or checkpoint
    if axis in CELLS and in_domain(predictions, axis, cell).empty:
        raise InputError(
            f"{source}: no test question with {CELLS[axis]} {cell!r}, so {checkpoint} cannot be"
            " judged in-domain; remove it from checkpoints in params.yaml or give the corpus more"
            " such questions"
        )


def _faults(
    predictions: pd.DataFrame, checkpoint: str, axis: str
) -> dict[str, tuple[pd.Series[bool], str]]:
    """Column -> the rows in which its value cannot be, and why."""
    # NaN for what is no letter, which is below no number of options
    place = predictions["gold"].map({letter: number for number, letter in enumerate(LETTERS)})
    wanted = predictions[[f"{name}_test" for name in AXES if axis in (name, "all")]].any(axis=1)
    faults = {
        "checkpoint": (predictions["checkpoint"] != checkpoint, f"in the file of {checkpoint!r}"),
        "question_id": (predictions["question_id"].duplicated(), "given twice"),
        "modality": (
            ~predictions["modality"].isin(AXES["modality"]),
            f"not one of {', '.join(AXES['modality'])}",
        ),
        "question_type": (
            ~predictions["question_type"].isin(AXES["task"]),
            f"not one of {', '.join(AXES['task'])}",
        ),
        "image": (~wanted, f"of a question outside the test split of the axis {axis!r}"),
        "n_options": (predictions["n_options"] < 2, "not a number of options to choose from"),
        "completion_tokens": (predictions["completion_tokens"] < 0, "not a number of tokens"),
        "gold": (~(place < predictions["n_options"]), "not the letter of one of its options"),
    }
    for variant in ABLATIONS:
        ablated = predictions[f"{variant}_image"].notna()
        for name in (f"{variant}_output", f"{variant}_completion_tokens"):
            faults[name] = (
                predictions[name].notna() != ablated,
                f"at odds with its {variant}_image: one without the other",
            )
    return faults


def check_same_questions(base: pd.DataFrame, other: pd.DataFrame, axis: str, source: str) -> None:
    """Raise InputError unless both answered the same questions of `axis`, with equal gold."""
    gold = tested(base, axis).set_index("question_id")["gold"]
    own = other.set_index("question_id")["gold"]
    remedy = (
        "evaluate both on the same splits: `dvc repro evaluate@base` and this checkpoint's evaluate"
    )
    for who, ids in (
        ("the base did not", own.index.difference(gold.index)),
        ("only the base did", gold.index.difference(own.index)),
    ):
        if len(ids):
            raise InputError(
                f"{source}: question {ids[0]!r} is one of {len(ids)} to be answered by both, but"
                f" {who}; {remedy}"
            )
    differs = own[own != gold.reindex(own.index)]
    if len(differs):
        name = differs.index[0]
        raise InputError(
            f"{source}: question {name!r}: gold {differs.iloc[0]!r}, but {gold[name]!r} for the"
            f" base; {remedy}"
        )


def _again(checkpoint: str) -> str:
    return f"make it again: `dvc repro --single-item --force evaluate@{checkpoint}`"
