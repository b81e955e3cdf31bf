"""Cell-by-cell comparison: the numbers recomputed, and runs that cannot be comparison."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.comparison.pairs import (
    BASE,
    MEANS,
    RunPredictions,
    check_comparable,
    common_properties,
    compare,
    published_table,
    rows_of,
)
from stages.core.errors import InputError
from stages.corpus.dataset.problems import format_solution
from stages.scoring.statistics import holm, mcnemar, paired_interval
from tests.fakes import CHECKPOINTS, make_predictions, make_questions
from tests.omnimedvqa import AXES

QUESTIONS = make_questions(per_cell=10)
PROPERTIES = {"split kind": "grouped", "corpus": "md5:a", "prompt style": "no-think"}
PREDICTIONS = {name: make_predictions(QUESTIONS, name) for name in ["base", *CHECKPOINTS]}


def flipped(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Other answers: a third of the correct ones lost, a tenth of the wrong ones won."""
    draws = np.random.default_rng(seed).random(len(rows))
    correct = np.where(rows["correct"].to_numpy(bool), draws > 1 / 3, draws < 0.1)
    outputs = [
        format_solution(gold) if is_correct else ""
        for is_correct, gold in zip(correct, rows["gold"], strict=True)
    ]
    return rows.assign(correct=correct, answer=rows["gold"].where(correct, None), output=outputs)


def run(source: str = "a", change: bool = False, **properties: str) -> RunPredictions:
    predictions = {name: flipped(rows, 7) if change else rows for name, rows in PREDICTIONS.items()}
    named = {name.replace("_", " "): value for name, value in properties.items()}
    return RunPredictions(source, predictions, PROPERTIES | named)


def test_every_cell_compares_its_paired_questions() -> None:
    first = run("a")
    second = run("b", change=True, prompt_style="think")
    for comparison in compare(first, second, AXES, 200, 3):
        axis = comparison.axis
        slugs = AXES[axis]
        cells = [(cell.trained, cell.tested) for cell in comparison.cells]
        assert cells == list(product((BASE, *slugs), slugs))
        p_values = {}
        for cell in comparison.cells:
            column = "modality" if axis == "modality" else "question_type"
            one, other = (each.predictions[cell.trained] for each in (first, second))
            in_cell = one[f"{axis}_test"] & (one[column] == cell.tested)
            a, b = (each[in_cell].sort_values("question_id") for each in (one, other))
            assert (cell.n, cell.images) == (len(a), a["image"].nunique())
            assert cell.first == pytest.approx(a["correct"].mean())
            assert cell.difference == pytest.approx(a["correct"].mean() - b["correct"].mean())
            correct = (a["correct"].to_numpy(bool), b["correct"].to_numpy(bool))
            assert (cell.low, cell.high) == paired_interval(*correct, 200, 3, clusters=a["image"])
            assert (cell.won, cell.lost, cell.p) == tuple(vars(mcnemar(*correct)).values())
            if cell.trained != BASE:
                p_values[f"{cell.trained}/{cell.tested}"] = cell.p
        own = {
            f"{cell.trained}/{cell.tested}": cell.p_holm
            for cell in comparison.cells
            if cell.trained != BASE
        }
        assert own == holm(p_values), "the base's row is a family of its own"


def test_means_are_over_the_cells_without_the_base() -> None:
    for comparison in compare(run(), run("b", change=True), AXES, 2000, 3):
        trained = [cell for cell in comparison.cells if cell.trained != BASE]
        for name, includes in MEANS.items():
            own = [cell.difference for cell in trained if includes(cell.trained, cell.tested)]
            mean = comparison.means[name]
            assert mean.cells == len(own)
            assert mean.difference == pytest.approx(np.mean(own))
            assert mean.low < mean.difference < mean.high
        # a mean over many cells has a narrower interval than one cell
        widths = [cell.high - cell.low for cell in trained]
        assert comparison.means["all cells"].high - comparison.means["all cells"].low < np.median(
            widths
        )


def test_a_run_compared_with_itself_has_no_differences() -> None:
    for comparison in compare(run(), run("b"), AXES, 100, 1):
        assert {
            (cell.difference, cell.low, cell.high, cell.p_holm) for cell in comparison.cells
        } == {(0.0, 0.0, 0.0, 1.0)}


def test_swapping_the_runs_changes_the_signs() -> None:
    one = run()
    other = run("b", change=True)
    for forth, back in zip(
        compare(one, other, AXES, 100, 1), compare(other, one, AXES, 100, 1), strict=True
    ):
        for a, b in zip(forth.cells, back.cells, strict=True):
            assert (a.difference, a.won, a.lost, a.p_holm) == (
                -b.difference,
                b.lost,
                b.won,
                b.p_holm,
            )


def test_runs_of_some_checkpoints_give_only_their_cells() -> None:
    some = {name: PREDICTIONS[name] for name in ("base", "ct")}
    (comparison,) = compare(
        RunPredictions("a", some, PROPERTIES), RunPredictions("b", some, PROPERTIES), AXES, 100, 1
    )
    assert comparison.axis == "modality"
    assert {cell.trained for cell in comparison.cells} == {"base", "ct"}
    assert {name: mean.cells for name, mean in comparison.means.items()} == {
        "in-domain": 1,
        "cross-domain": 7,
        "all cells": 8,
    }


def test_published_differences_are_separate_from_ours() -> None:
    first, *_ = compare(run(), run("b"), AXES, 100, 1)
    assert not any(cell.difference for cell in first.cells), "the published ones are not zero"
    assert published_table("modality").at("mri", "ct") == 16.94
    assert "published" not in rows_of(first.cells, 4)[0]


def changed(run: RunPredictions, name: str, change: Any) -> RunPredictions:
    return RunPredictions(
        run.source, {**run.predictions, name: change(run.predictions[name])}, run.properties
    )


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            run("b", split_kind="random"),
            r"a has the split kind grouped, b random: .*splits.kind in params.yaml",
        ),
        (run("b", corpus="md5:b"), r"a has the corpus md5:a, b md5:b"),
        (
            RunPredictions("b", {"base": PREDICTIONS["base"]}, PROPERTIES),
            r"b/ct.parquet is missing, .*`dvc repro evaluate@ct`",
        ),
        (
            changed(run("b"), "mri", lambda rows: rows.iloc[1:]),
            r"b/mri.parquet: question 'Phantom_\d+' is one of 1 that only a/mri.parquet has",
        ),
        (
            changed(
                run("b"),
                "mri",
                lambda rows: pd.concat([rows, rows.iloc[:1].assign(question_id="new")]),
            ),
            r"a/mri.parquet: question 'new' is one of 1 that only b/mri.parquet has",
        ),
        (
            changed(run("b"), "oct", lambda rows: rows.assign(gold=["E", *rows["gold"].iloc[1:]])),
            r"b/oct.parquet: question 'Phantom_\d+': gold 'E', but .[A-D]. in a/oct.parquet",
        ),
    ],
)
def test_unpaired_answers_are_refused_by_file_and_question(
    second: RunPredictions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_comparable(run("a"), second)


def test_runs_without_a_checkpoint_are_refused() -> None:
    only = RunPredictions("a", {"base": PREDICTIONS["base"]}, PROPERTIES)
    with pytest.raises(InputError, match="no checkpoint in common"):
        compare(only, only, AXES, 100, 1)


def test_files_of_one_run_must_have_provenance_and_agree() -> None:
    def provenance(style: str) -> dict[str, Any]:
        params = {"splits.kind": "grouped", "prompt": {"style": style}}
        return {"corpus": "md5:a", "params": params}

    think = provenance("think")
    assert common_properties({"a": think, "b": think}) == PROPERTIES | {"prompt style": "think"}
    with pytest.raises(InputError, match="a and b .* prompt style is think .* no-think"):
        common_properties({"a": think, "b": provenance("no-think")})
    with pytest.raises(InputError, match="a: .* lacks the split kind"):
        common_properties({"a": {"corpus": "md5:a", "params": {}}})
