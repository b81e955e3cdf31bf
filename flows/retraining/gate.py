"""The gate: may challengers take the champions' place?

Both have answered the challengers' test questions; each difference is paired.

A checkpoint is worse unless it is shown not to be: the lower end of the 95% interval of challenger
minus champion, which draws images with all their questions, must stay above minus
`retrain.max_loss`, on its own test and in the mean over its axis. It is better if that interval on
its own test lies above zero and McNemar's p, after Holm over all that are judged, is below 0.05.
All go through together or none: they were made from one corpus, and one report is about them.
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
from stages.scoring.statistics import holm

LEVEL: Final = 0.05
_SAME: Final = {"split kind": "the same", "corpus": "the same"}
"""Both sides are asked the same questions in the same workspace."""


@dataclass(frozen=True)
class PairedPredictions:
    """Predictions of one checkpoint's champion and challenger on the test questions of its axis.

    `cell`: what it is trained on; `excluded_images`: images that only one of the two has been
    trained on, which are left out.
    """

    axis: str
    cell: str
    champion: pd.DataFrame
    challenger: pd.DataFrame
    excluded_images: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Judgement:
    """What the gate found of one checkpoint.

    Differences are shares, challenger minus champion. `own`: on its own test, None without a
    question; `macro`: the mean over the cells of its axis; `cells`: all of them. `left_out`:
    questions that could not be asked of both. `p`: McNemar's on its own test after Holm over the
    checkpoints judged. `against`: what speaks against it, empty if it may go through.
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
    """Whether challengers become champions, why or why not, and what was found of each."""

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
    """Apply the rule. `gone`: checkpoints that the champion has and the challenger has not.

    `samples` and `seed` are those of the bootstrap. InputError if two sides answered other
    questions.
    """
    measured = {name: _measure(contest, samples, seed) for name, contest in contests.items()}
    adjusted = holm({name: own.p for name, (own, *_) in measured.items() if own is not None})
    judgements = {}
    for name, (own, macro, cells, left_out) in measured.items():
        better = own is not None and own.low > 0 and adjusted[name] < LEVEL
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
            f"{len(better_ones)} of {len(judgements)} checkpoints are better for certain on their"
            f" own test; retrain.min_better asks for {rule.min_better}"
        )
    if reasons:
        return Verdict(False, tuple(reasons), judgements)
    praise = (
        f"better for certain: {', '.join(better_ones)}"
        if better_ones
        else "none has to be better (retrain.min_better is 0)"
    )
    return Verdict(
        True,
        (f"none of {len(judgements)} is worse by more than {rule.max_loss:g} points; {praise}",),
        judgements,
    )


def _measure(
    contest: PairedPredictions, samples: int, seed: int
) -> tuple[Cell | None, Mean | None, tuple[Cell, ...], int]:
    """Own cell, macro mean, all cells, questions left out."""
    sides = {}
    for side, rows in {"challenger": contest.challenger, "champion": contest.champion}.items():
        sides[side] = RunPredictions(
            f"the {side}'s answers",
            {contest.cell: rows[~rows["image"].isin(contest.excluded_images)]},
            _SAME,
        )
    left_out = int(contest.challenger["image"].isin(contest.excluded_images).sum())
    (compared,) = compare(sides["challenger"], sides["champion"], samples, seed)
    own = next((cell for cell in compared.cells if cell.tested == contest.cell), None)
    return own, compared.means.get("all cells"), tuple(compared.cells), left_out


def _against(
    name: str, own: Cell | None, macro: Mean | None, cells: Sequence[Cell], rule: Retrain
) -> tuple[str, ...]:
    """What speaks against a checkpoint."""
    found = []
    asked = own.n if own else 0
    if own is None or macro is None or asked < rule.min_test_questions:
        found.append(
            f"{name}: {asked} test questions of its own can be asked of both;"
            f" retrain.min_test_questions asks for {rule.min_test_questions}"
        )
    else:
        where = {
            f"on its own test ({percent(own.second)} to {percent(own.first)}%)": (
                own.difference,
                own.low,
                own.high,
            )
        }
        where["in the mean over its axis"] = (macro.difference, macro.low, macro.high)
        for what, (difference, low, high) in where.items():
            if 100 * low < -rule.max_loss:
                found.append(
                    f"{name} {what}: {signed(difference)} points, 95% interval {signed(low)} to"
                    f" {signed(high)}: it may be worse by more than {rule.max_loss:g}"
                    " (retrain.max_loss)"
                )
    wanted = {cell.partition("/")[2] for cell in rule.never_worse if cell.partition("/")[0] == name}
    for cell in cells:
        if cell.tested in wanted and cell.lost > cell.won:
            found.append(
                f"{name} on {cell.tested}: {cell.lost} questions lost, {cell.won} won;"
                " retrain.never_worse names this cell"
            )
    for absent in sorted(wanted - {cell.tested for cell in cells}):
        found.append(
            f"{name} on {absent}: no question to ask of both, but retrain.never_worse names this"
            " cell"
        )
    return tuple(found)
