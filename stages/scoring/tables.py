"""From predictions to accuracies: by modality, by question type, by dataset, and crossed with the checkpoints.

A prediction is one row: what one checkpoint wrote for one question. Every accuracy comes with the number of questions
behind it. A cell without a question has no accuracy, and a macro mean over such a cell has none either.

Published results are unweighted means over the cells (macro) as far as the source tells (arXiv 2503.13939, released
evaluation scripts); the mean over questions (micro) stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from stages.corpus.modalities import AXES
from stages.errors import InputError

COLUMNS: Final[dict[str, str]] = {
    "checkpoint": "text",
    "question_id": "text",
    "dataset": "text",
    "modality": "text",
    "question_type": "text",
    "modality_test": "truth",
    "task_test": "truth",
    "image": "text",
    "n_options": "count",
    "gold": "text",
    "output": "text",
    "answer": "text or null",
    "correct": "truth",
    "completion_tokens": "count",
}
"""What a table of predictions holds, column by column."""

CELLS: Final[dict[str, str]] = {"modality": "modality", "task": "question_type"}
"""Axis -> the column that says in which of its cells a question lies."""


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
    """Accuracies of several checkpoints on the same questions, cell by cell.

    `accuracy`: checkpoint, "base" first -> cell -> accuracy, None where the cell is empty; the last cell is "macro", the
    mean of the others. `questions`: how many there are in each cell.
    """

    accuracy: dict[str, dict[str, float | None]]
    questions: dict[str, int]


def score(predictions: pd.DataFrame) -> Score:
    """The micro score: every question counts once."""
    return Score(int(predictions["correct"].sum()), len(predictions))


def scores_by(predictions: pd.DataFrame, column: str, cells: Sequence[str] | None = None) -> dict[str, Score]:
    """One score for each value of `column`; with `cells`, exactly these, in their order, empty ones included."""
    found = {str(value): score(rows) for value, rows in predictions.groupby(column, sort=True)}
    return found if cells is None else {cell: found.get(cell, Score(0, 0)) for cell in cells}


def macro(scores: Mapping[str, Score]) -> float | None:
    """Unweighted mean accuracy over the cells; None if a cell is empty, for it would be a mean over something else."""
    accuracies = [cell.accuracy for cell in scores.values()]
    present = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(present) / len(present) if present and len(present) == len(accuracies) else None


def tested(predictions: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The questions in the test splits of one axis, "modality" or "task"."""
    return predictions[predictions[f"{axis}_test"]]


def in_domain(predictions: pd.DataFrame, axis: str, cell: str) -> pd.DataFrame:
    """The questions in the test split of one modality or question type."""
    rows = tested(predictions, axis)
    return rows[rows[CELLS[axis]] == cell]


def cross_table(predictions: Mapping[str, pd.DataFrame], axis: str, column: str) -> CrossTable:
    """Cross the base and the checkpoints of `axis`, all tested on its test splits, with the values of `column`.

    `column` is "modality" or "question_type"; `predictions` holds "base" and checkpoints of `axis` only.
    """
    cells = next(AXES[name] for name, own in CELLS.items() if own == column)
    scores = {name: scores_by(tested(rows, axis), column, cells) for name, rows in predictions.items()}
    return CrossTable(
        accuracy={name: {cell: row[cell].accuracy for cell in cells} | {"macro": macro(row)} for name, row in scores.items()},
        questions={cell: found.n for cell, found in scores["base"].items()},
    )


def check_predictions(predictions: pd.DataFrame, checkpoint: str, axis: str, source: str) -> None:
    """Refuse a table that is not what one checkpoint wrote for the test questions of its axis ("all" for the base).

    InputError names `source` (the file), the question, the value and the way out: a missing column or value, a wrong
    type, another checkpoint's rows, a question given twice, an unknown modality or question type, a question outside
    the test split, `correct` at odds with `answer` and `gold`.
    """
    if missing := [name for name in COLUMNS if name not in predictions]:
        raise InputError(f"{source}: no column {missing[0]!r}; {_again(checkpoint)}")
    if predictions.empty:
        raise InputError(f"{source}: no predictions in it; {_again(checkpoint)}")
    for name, kind in COLUMNS.items():
        _check_column(predictions, name, kind, f"{source}: ", checkpoint)

    right = predictions["answer"].eq(predictions["gold"]).fillna(False).astype(bool)
    wanted = predictions[[f"{name}_test" for name in AXES if axis in (name, "all")]].any(axis=1)
    faults = {
        "checkpoint": (predictions["checkpoint"] != checkpoint, f"in the file of {checkpoint!r}"),
        "question_id": (predictions["question_id"].duplicated(), "given twice"),
        "modality": (~predictions["modality"].isin(AXES["modality"]), f"not one of {', '.join(AXES['modality'])}"),
        "question_type": (~predictions["question_type"].isin(AXES["task"]), f"not one of {', '.join(AXES['task'])}"),
        "image": (~wanted, f"of a question outside the test split of the axis {axis!r}"),
        "correct": (predictions["correct"] != right, "at odds with its answer and gold"),
    }
    for name, (wrong, why) in faults.items():
        if wrong.any():
            row = predictions[wrong].iloc[0]
            raise InputError(f"{source}: question {row['question_id']!r}: {name} {row[name]!r} is {why}; {_again(checkpoint)}")
    if axis in CELLS and in_domain(predictions, axis, checkpoint).empty:
        raise InputError(
            f"{source}: no test question with {CELLS[axis]} {checkpoint!r}, so {checkpoint} cannot be judged in-domain; "
            f"take it out of checkpoints in params.yaml or give the corpus more such questions"
        )


def check_same_questions(base: pd.DataFrame, other: pd.DataFrame, axis: str, source: str) -> None:
    """Refuse a comparison that is not paired: both must have answered the same test questions of `axis`, with the same gold."""
    gold = tested(base, axis).set_index("question_id")["gold"]
    own = other.set_index("question_id")["gold"]
    remedy = "evaluate both on the same splits: `dvc repro evaluate@base` and this checkpoint's evaluate"
    for who, ids in (("the base did not", own.index.difference(gold.index)), ("only the base did", gold.index.difference(own.index))):
        if len(ids):
            raise InputError(f"{source}: question {ids[0]!r} is one of {len(ids)} to be answered by both, but {who}; {remedy}")
    differs = own[own != gold.reindex(own.index)]
    if len(differs):
        name = differs.index[0]
        raise InputError(f"{source}: question {name!r}: gold {differs.iloc[0]!r}, but {gold[name]!r} for the base; {remedy}")


def _check_column(predictions: pd.DataFrame, name: str, kind: str, source: str, checkpoint: str) -> None:
    column = predictions[name]
    if kind != "text or null" and column.isna().any():
        at = int(column.isna().to_numpy().argmax())
        raise InputError(f"{source}row {at} (question {predictions['question_id'].iloc[at]!r}) has no {name}; {_again(checkpoint)}")
    fits = {
        "truth": pd.api.types.is_bool_dtype(column),
        "count": pd.api.types.is_integer_dtype(column),
        "text": pd.api.types.is_string_dtype(column),
        "text or null": pd.api.types.is_string_dtype(column.dropna()) or column.isna().all(),
    }
    if not fits[kind]:
        raise InputError(f"{source}column {name!r} holds {column.dtype}, not {kind}; {_again(checkpoint)}")


def _again(checkpoint: str) -> str:
    return f"make it again: `dvc repro --single-item --force evaluate@{checkpoint}`"
