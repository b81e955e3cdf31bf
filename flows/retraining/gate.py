"""The promotion gate: statistical tests that decide whether challengers replace the champion.

Champions and challengers answer the challengers' test questions, so differences are paired.

Non-inferiority is required: the lower end of the 95% interval of challenger minus champion (a
bootstrap over images with all their questions) must be above minus `retrain.max_loss`, on the
checkpoint's own test and in the mean over its axis. A checkpoint is better if the interval on its
own test is above zero and McNemar's p, after Holm's correction over all checkpoints judged, is
below 0.05. All checkpoints pass together or none: they come from one corpus and share one report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import pandas as pd

from stages.comparison.pairs import Cell, Mean, RunPredictions, compare
from stages.core.params import Retrain
from stages.reporting.labels import percent, signed
from stages.scoring.statistics import holm, is_significant
from stages.scoring.tables import CELLS

_SAME: Final = {"split kind": "the same", "corpus": "the same"}
"""Both sides answer the same questions in the same workspace."""


@dataclass(frozen=True)
class PairedPredictions:
    """Predictions of one checkpoint's champion and challenger on the test questions of its axis.

    `cell`: the cell it was trained on; `excluded_images`: images that exactly one of the two was
    trained on, left out of the comparison; `joint`: the slugs of a cell that is a union of several.
    """

    axis: str
    cell: str
    champion: pd.DataFrame
    challenger: pd.DataFrame
    excluded_images: frozenset[str] = frozenset()
    joint: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """The gate's result for one checkpoint; differences are shares, challenger minus champion.

    `own`: on its own test, None without questions; `macro`: mean over the cells of its axis;
    `cells`: all cells; `left_out`: number of excluded questions; `p`: McNemar's on its own test
    after Holm over the checkpoints judged; `against`: reasons against it, empty if it passes.
    """

    own: Cell | None
    macro: Mean | None
    cells: tuple[Cell, ...]
    left_out: int
    p: float
    better: bool
    against: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether to promote, the reasons for or against, and the judgement of each checkpoint."""

    promote: bool
    reasons: tuple[str, ...]
    judgements: Mapping[str, Judgement]


def judge(
    contests: Mapping[str, PairedPredictions],
    rule: Retrain,
    samples: int,
    seed: int,
    gone: Sequence[str] = (),
) -> Verdict:
    """Apply the rule. `gone`: checkpoints of the champion that the challenger lacks.

    `samples` and `seed` belong to the bootstrap. InputError if the two sides of a contest answered
    different questions.
    """
    measured = {name: _measure(contest, samples, seed) for name, contest in contests.items()}
    adjusted = holm({name: own.p for name, (own, *_) in measured.items() if own is not None})
    judgements = {}
    for name, (own, macro, cells, left_out) in measured.items():
        better = own is not None and own.low > 0 and is_significant(adjusted[name])
        against = _against(name, own, macro, cells, rule)
        judgements[name] = Judgement(
            own, macro, cells, left_out, adjusted.get(name, 1.0), better, against
        )
    reasons = [f"{name} is not among the challengers any more" for name in gone]
    reasons += chain.from_iterable(judgement.against for judgement in judgements.values())
    better_ones = [name for name, judgement in judgements.items() if judgement.better]
    if not judgements:
        reasons.append("no checkpoint was retrained: there is no challenger")
    elif len(better_ones) < rule.min_better:
        reasons.append(
            f"{len(better_ones)} of {len(judgements)} checkpoints are significantly better on their"
            f" own test; retrain.min_better requires {rule.min_better}"
        )
    if reasons:
        return Verdict(False, tuple(reasons), judgements)
    improvement = "none has to be better (retrain.min_better is 0)"
    if better_ones:
        improvement = f"significantly better: {', '.join(better_ones)}"
    reason = (
        f"none of {len(judgements)} is worse by more than {rule.max_loss:g} points; {improvement}"
    )
    return Verdict(True, (reason,), judgements)


def _measure(
    contest: PairedPredictions, samples: int, seed: int
) -> tuple[Cell | None, Mean | None, tuple[Cell, ...], int]:
    """Own cell, macro mean, all cells, number of excluded questions."""

    def side(name: str, rows: pd.DataFrame) -> RunPredictions:
        rows = rows[~rows["image"].isin(contest.excluded_images)]
        return RunPredictions(f"the {name}'s answers", {contest.cell: rows}, _SAME)

    challenger = side("challenger", contest.challenger)
    champion = side("champion", contest.champion)
    left_out = int(contest.challenger["image"].isin(contest.excluded_images).sum())
    tested = contest.challenger[CELLS[contest.axis]]
    axes = {contest.axis: tuple(sorted({contest.cell, *map(str, tested)}))}
    (compared,) = compare(challenger, champion, axes, samples, seed)
    cells = compared.cells
    if contest.joint:
        (union,) = compare(
            _as_one_cell(challenger, contest),
            _as_one_cell(champion, contest),
            {contest.axis: (contest.cell,)},
            samples,
            seed,
        )
        cells = union.cells
    own = next((cell for cell in cells if cell.tested == contest.cell), None)
    return own, compared.means.get("all cells"), tuple(compared.cells), left_out


def _as_one_cell(run: RunPredictions, contest: PairedPredictions) -> RunPredictions:
    """The predictions with one name for all slugs of a joint cell."""
    rows = run.predictions[contest.cell]
    column = CELLS[contest.axis]
    named = rows.assign(
        **{column: rows[column].where(~rows[column].isin(contest.joint), contest.cell)}
    )
    return RunPredictions(run.source, {contest.cell: named}, run.properties)


def _against(
    name: str, own: Cell | None, macro: Mean | None, cells: Sequence[Cell], rule: Retrain
) -> tuple[str, ...]:
    """The reasons against a checkpoint."""
    reasons = []
    questions = own.n if own else 0
    if own is None or macro is None or questions < rule.min_test_questions:
        reasons.append(
            f"{name}: only {questions} comparable questions in its own test;"
            f" retrain.min_test_questions requires {rule.min_test_questions}"
        )
    else:
        on_own_test = f"on its own test ({percent(own.second)} to {percent(own.first)}%)"
        measures: dict[str, Cell | Mean] = {on_own_test: own, "in the mean over its axis": macro}
        for where, each in measures.items():
            if 100 * each.low < -rule.max_loss:
                reasons.append(
                    f"{name} {where}: {signed(each.difference)} points, 95% interval"
                    f" {signed(each.low)} to {signed(each.high)}: it may be worse by more than"
                    f" {rule.max_loss:g} (retrain.max_loss)"
                )
    pairs = [cell.partition("/") for cell in rule.never_worse]
    protected = {tested for checkpoint, _, tested in pairs if checkpoint == name}
    for cell in cells:
        if cell.tested in protected and cell.lost > cell.won:
            reasons.append(
                f"{name} on {cell.tested}: {cell.lost} questions lost, {cell.won} won;"
                " retrain.never_worse names this cell"
            )
    for absent in sorted(protected - {cell.tested for cell in cells}):
        reasons.append(
            f"{name} on {absent}: no comparable question, but retrain.never_worse names this cell"
        )
    return tuple(reasons)
