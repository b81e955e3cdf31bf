"""Accuracies from predictions: by modality, question type, dataset, and per checkpoint.

A prediction is one row: the answer of one checkpoint to one question. Every accuracy comes with its
number of questions. A cell without questions has no accuracy, and neither has a macro mean over it.

Published results are unweighted means over cells (macro) as far as the source tells (arXiv
2503.13939, released evaluation scripts); we report the mean over questions (micro) as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from stages.core.errors import InputError, recreate
from stages.corpus.dataset.problems import LETTERS
from stages.predictions.schema import ABLATIONS
from stages.scoring.variants import has, incomplete_variants
from stages.taxonomy import AXIS_NAMES, Axes

if TYPE_CHECKING:
    import pandas as pd

CELLS: Final[dict[str, str]] = {"modality": "modality", "task": "question_type"}
"""Axis -> the column that holds the cell of a question."""

Measure = Literal["accuracy", "visual gain", "difference to base"]


@dataclass(frozen=True)
class Target:
    """What a checkpoint was trained for: a cell (slug) of an axis, by a method.

    `joint`: the slugs of a cell that is the union of several; `folds`: the checkpoints of a
    cross-validation, each of which answered the questions of its fold.
    """

    axis: str
    cell: str
    method: str = "grpo"
    joint: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The slugs of the axis that are in-domain."""
        return self.joint or (self.cell,)


@dataclass(frozen=True)
class Score:
    """Number of correct answers among `n` questions."""

    correct: int
    n: int

    @property
    def accuracy(self) -> float | None:
        """Share of correct answers, 0 to 1; None without questions."""
        return self.correct / self.n if self.n else None


@dataclass(frozen=True)
class CrossTable:
    """One number per checkpoint and cell, all checkpoints on the same questions.

    `values`: checkpoint, "base" first -> cell -> accuracy or difference of accuracies, None if
    missing; the last cell is "macro", the mean of the others. `questions`: cell -> number of
    questions. `own`: checkpoint -> the cell it was trained on.
    """

    measure: Measure
    values: dict[str, dict[str, float | None]]
    questions: dict[str, int]
    own: dict[str, str]

    @property
    def has_numbers(self) -> bool:
        """Whether any number is not missing."""
        return any(True for _ in self.numbers())

    def numbers(self) -> Iterator[float]:
        """All numbers row by row, without missing ones."""
        for row in self.values.values():
            yield from (value for value in row.values() if value is not None)


def score(predictions: pd.DataFrame) -> Score:
    """Micro score: every question counts once."""
    return Score(int(predictions["correct"].sum()), len(predictions))


def scores_by(
    predictions: pd.DataFrame, column: str, cells: Sequence[str] | None = None
) -> dict[str, Score]:
    """One score per value of `column`; with `cells`, exactly these in order, even if empty."""
    by_value = {str(value): score(rows) for value, rows in predictions.groupby(column, sort=True)}
    if cells is None:
        return by_value
    return {cell: by_value.get(cell, Score(0, 0)) for cell in cells}


def macro(scores: Mapping[str, Score]) -> float | None:
    """Unweighted mean accuracy over cells; None if a cell is empty."""
    return mean_of_all([cell.accuracy for cell in scores.values()])


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None without values or if one of them is missing."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return None
    return sum(present) / len(present)


def tested(predictions: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The rows in the test splits of one axis, "modality" or "task"."""
    return predictions[predictions[f"{axis}_test"]]


def in_domain(predictions: pd.DataFrame, axis: str, cells: Collection[str]) -> pd.DataFrame:
    """The rows in the test splits of some modalities or question types (slugs)."""
    rows = tested(predictions, axis)
    return rows[rows[CELLS[axis]].isin(cells)]


def own_questions(predictions: pd.DataFrame, target: Target) -> pd.DataFrame:
    """A checkpoint's in-domain predictions, indexed by and sorted by question id."""
    own = in_domain(predictions, target.axis, target.cells)
    return own.set_index("question_id", drop=False).sort_index()


def cross_table(
    predictions: Mapping[str, pd.DataFrame],
    axis: str,
    column: str,
    axes: Axes,
    targets: Mapping[str, Target] | None = None,
) -> CrossTable:
    """Cross table of accuracies: base and checkpoints of `axis` against the values of `column`.

    `column` is "modality" or "question_type"; `predictions` holds only "base" and checkpoints of
    `axis`; with `targets`, the table knows which cells are in-domain.
    """
    scores = {
        name: scores_by(tested(rows, axis), column, _cells(column, axes))
        for name, rows in predictions.items()
    }
    values = {
        name: {cell: cell_score.accuracy for cell, cell_score in row.items()}
        for name, row in scores.items()
    }
    return _crossed("accuracy", values, scores["base"], column, targets)


def cross_visual_gain(
    predictions: Mapping[str, pd.DataFrame],
    axis: str,
    column: str,
    axes: Axes,
    targets: Mapping[str, Target] | None = None,
) -> CrossTable:
    """Cross table of visual gains: accuracy minus that with a shuffled image; see `cross_table`."""
    ablated = {
        name: with_ablation(tested(rows, axis), "shuffled") for name, rows in predictions.items()
    }
    with_image = {
        name: scores_by(rows, column, _cells(column, axes)) for name, rows in ablated.items()
    }
    unseen = {
        name: scores_by(without_image(rows, "shuffled"), column, _cells(column, axes))
        for name, rows in ablated.items()
    }
    values = {
        name: {
            cell: _difference(cell_score.accuracy, unseen[name][cell].accuracy)
            for cell, cell_score in row.items()
        }
        for name, row in with_image.items()
    }
    return _crossed("visual gain", values, with_image["base"], column, targets)


def cross_to_base(table: CrossTable) -> CrossTable:
    """Differences of a table of accuracies to the base, whose row is dropped."""
    base = table.values["base"]
    rows = {
        name: {cell: _difference(value, base[cell]) for cell, value in row.items()}
        for name, row in table.values.items()
        if name != "base"
    }
    return CrossTable("difference to base", rows, table.questions, table.own)


def with_ablation(predictions: pd.DataFrame, variant: str) -> pd.DataFrame:
    """The rows whose question was also evaluated in this variant, one of `VARIANTS`."""
    return predictions[has(predictions, f"{variant}_correct")]


def without_image(predictions: pd.DataFrame, variant: str) -> pd.DataFrame:
    """Rows of `with_ablation` with the variant's answers in place of the real ones."""
    return predictions.assign(
        output=predictions[f"{variant}_output"],
        answer=predictions[f"{variant}_answer"],
        correct=predictions[f"{variant}_correct"].astype(bool),
    )


def _cells(column: str, axes: Axes) -> tuple[str, ...]:
    return next(axes[axis] for axis, axis_column in CELLS.items() if axis_column == column)


def _crossed(
    measure: Measure,
    values: Mapping[str, Mapping[str, float | None]],
    base: Mapping[str, Score],
    column: str,
    targets: Mapping[str, Target] | None,
) -> CrossTable:
    own = {
        name: targets[name].cell
        for name in values
        if targets
        and name in targets
        and CELLS[targets[name].axis] == column
        and not targets[name].joint
    }
    rows = {name: {**row, "macro": mean_of_all(list(row.values()))} for name, row in values.items()}
    questions = {cell: cell_score.n for cell, cell_score in base.items()}
    return CrossTable(measure, rows, questions, own)


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def check_predictions(
    predictions: pd.DataFrame,
    checkpoint: str,
    axis: str,
    source: str,
    axes: Axes,
    cells: Collection[str] | None = None,
) -> None:
    """Validate one checkpoint's predictions on the test questions of its axis ("all" for the base).

    Raises InputError, naming `source` (the file), question, value and remedy, for another
    checkpoint's rows, a duplicate question, an unknown modality or question type, a question
    outside the test split, a gold letter that is not offered, an incomplete variant, or no
    question of the `cells` that the checkpoint was trained on (by default its name).
    """
    remedy = recreate(f"evaluate@{checkpoint}")
    if predictions.empty:
        raise InputError(f"{source}: no predictions; {remedy}")
    for name, (wrong, why) in _faults(predictions, checkpoint, axis, axes).items():
        if wrong.any():
            row = predictions[wrong].iloc[0]
            value = row[name].item() if isinstance(row[name], np.generic) else row[name]
            raise InputError(
                f"{source}: question {row['question_id']!r}: {name} {value!r} is {why}; {remedy}"
            )
    cells = cells or (checkpoint,)
    if axis in CELLS and in_domain(predictions, axis, cells).empty:
        raise InputError(
            f"{source}: no test question with {CELLS[axis]} {' or '.join(cells)}, so {checkpoint}"
            " cannot be evaluated in-domain; remove it from checkpoints in params.yaml, or add such"
            " questions to the corpus"
        )


def _faults(
    predictions: pd.DataFrame, checkpoint: str, axis: str, axes: Axes
) -> dict[str, tuple[pd.Series[bool], str]]:
    """Column -> the rows in which its value is invalid, and why."""
    # NaN, which compares as False, where gold is not a letter
    gold_index = predictions["gold"].map({letter: index for index, letter in enumerate(LETTERS)})
    in_test = predictions[[f"{name}_test" for name in AXIS_NAMES if axis in (name, "all")]].any(
        axis=1
    )
    faults = {
        "checkpoint": (predictions["checkpoint"] != checkpoint, f"in the file of {checkpoint!r}"),
        "question_id": (predictions["question_id"].duplicated(), "a duplicate"),
        "modality": (
            ~predictions["modality"].isin(axes["modality"]),
            f"not one of {', '.join(axes['modality'])}",
        ),
        "question_type": (
            ~predictions["question_type"].isin(axes["task"]),
            f"not one of {', '.join(axes['task'])}",
        ),
        "image": (~in_test, f"of a question outside the test split of the axis {axis!r}"),
        "n_options": (predictions["n_options"] < 2, "not a number of options of at least 2"),
        "completion_tokens": (predictions["completion_tokens"] < 0, "not a number of tokens"),
        "gold": (~(gold_index < predictions["n_options"]), "not the letter of an option"),
    }
    for variant in ABLATIONS:
        ablated = predictions[f"{variant}_image"].notna()
        for name in (f"{variant}_output", f"{variant}_completion_tokens"):
            faults[name] = (
                predictions[name].notna() != ablated,
                f"inconsistent with {variant}_image: both or neither must be set",
            )
    return faults | incomplete_variants(predictions)


def check_same_questions(base: pd.DataFrame, other: pd.DataFrame, axis: str, source: str) -> None:
    """Raise InputError unless both have the same questions of `axis`, with equal gold."""
    gold = tested(base, axis).set_index("question_id")["gold"]
    own = other.set_index("question_id")["gold"]
    remedy = (
        "evaluate both on the same splits: `dvc repro evaluate@base`, then this checkpoint's"
        " evaluate stage"
    )
    for problem, ids in (
        ("is missing from the base's predictions", own.index.difference(gold.index)),
        ("is only in the base's predictions", gold.index.difference(own.index)),
    ):
        if len(ids):
            raise InputError(
                f"{source}: question {ids[0]!r}, one of {len(ids)}, {problem}; {remedy}"
            )
    differs = own[own != gold.reindex(own.index)]
    if len(differs):
        name = differs.index[0]
        raise InputError(
            f"{source}: question {name!r}: gold {differs.iloc[0]!r}, but {gold[name]!r} for the"
            f" base; {remedy}"
        )
