"""Two runs cell by cell: the numbers by hand, and runs that must not be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.comparison.pairs import (
    BASE,
    MEANS,
    RunPredictions,
    check_comparable,
    common_facts,
    compare,
    published_table,
    rows_of,
)
from stages.core.errors import InputError
from stages.corpus.dataset.problems import format_solution
from stages.scoring.statistics import holm, mcnemar, paired_interval
from stages.taxonomy import AXES
from tests.fakes import CHECKPOINTS, make_predictions, make_questions

QUESTIONS = make_questions(per_cell=10)
FACTS = {"split kind": "grouped", "corpus": "md5:a", "prompt style": "no-think"}
PREDICTIONS = {name: make_predictions(QUESTIONS, name) for name in ["base", *CHECKPOINTS]}


def flipped(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Other answers to the same questions.

    A third of the right ones lost, a tenth of the wrong ones won.
    """
    drawn = np.random.default_rng(seed).random(len(rows))
    right = np.where(rows["correct"].to_numpy(bool), drawn > 1 / 3, drawn < 0.1)
    outputs = [
        format_solution(gold) if hit else "" for hit, gold in zip(right, rows["gold"], strict=True)
    ]
    return rows.assign(correct=right, answer=rows["gold"].where(right, None), output=outputs)


def run(
    source: str = "a", changed: bool = False, facts: dict[str, str] | None = None
) -> RunPredictions:
    predictions = {
        name: flipped(rows, 7) if changed else rows for name, rows in PREDICTIONS.items()
    }
    return RunPredictions(source, predictions, FACTS | (facts or {}))


def test_every_cell_is_that_of_its_paired_questions() -> None:
    first, second = run("a"), run("b", changed=True, facts={"prompt style": "think"})
    for compared in compare(first, second, 200, 3):
        axis, slugs = compared.axis, AXES[compared.axis]
        assert [(cell.trained, cell.tested) for cell in compared.cells] == [
            (row, column) for row in (BASE, *slugs) for column in slugs
        ]
        p_values = {}
        for cell in compared.cells:
            column = "modality" if axis == "modality" else "question_type"
            one, other = (each.predictions[cell.trained] for each in (first, second))
            chosen = one[f"{axis}_test"] & (one[column] == cell.tested)
            a, b = (each[chosen].sort_values("question_id") for each in (one, other))
            assert (cell.n, cell.images) == (len(a), a["image"].nunique())
            assert cell.first == pytest.approx(a["correct"].mean())
            assert cell.difference == pytest.approx(a["correct"].mean() - b["correct"].mean())
            right = a["correct"].to_numpy(bool), b["correct"].to_numpy(bool)
            assert (cell.low, cell.high) == paired_interval(*right, 200, 3, clusters=a["image"])
            assert (cell.won, cell.lost, cell.p) == tuple(vars(mcnemar(*right)).values())
            if cell.trained != BASE:
                p_values[f"{cell.trained}/{cell.tested}"] = cell.p
        own = {
            f"{cell.trained}/{cell.tested}": cell.p_holm
            for cell in compared.cells
            if cell.trained != BASE
        }
        assert own == holm(p_values), "the base's row is a family of its own"


def test_means_are_those_of_the_cells_without_the_base() -> None:
    for compared in compare(run(), run("b", changed=True), 2000, 3):
        trained = [cell for cell in compared.cells if cell.trained != BASE]
        for name, chosen in MEANS.items():
            own = [cell.difference for cell in trained if chosen(cell.trained, cell.tested)]
            mean = compared.means[name]
            assert mean.cells == len(own)
            assert mean.difference == pytest.approx(np.mean(own))
            assert mean.low < mean.difference < mean.high
        # many cells are surer than one
        widths = [cell.high - cell.low for cell in trained]
        assert compared.means["all cells"].high - compared.means["all cells"].low < np.median(
            widths
        )


def test_a_run_against_itself_differs_nowhere() -> None:
    for compared in compare(run(), run("b"), 100, 1):
        assert {(cell.difference, cell.low, cell.high, cell.p_holm) for cell in compared.cells} == {
            (0.0, 0.0, 0.0, 1.0)
        }


def test_the_other_way_round_the_signs_change() -> None:
    one, other = run(), run("b", changed=True)
    for forth, back in zip(compare(one, other, 100, 1), compare(other, one, 100, 1), strict=True):
        for a, b in zip(forth.cells, back.cells, strict=True):
            assert (a.difference, a.won, a.lost, a.p_holm) == (
                -b.difference,
                b.lost,
                b.won,
                b.p_holm,
            )


def test_runs_of_some_checkpoints_give_the_cells_there_are() -> None:
    some = {name: PREDICTIONS[name] for name in ("base", "ct")}
    (compared,) = compare(
        RunPredictions("a", some, FACTS), RunPredictions("b", some, FACTS), 100, 1
    )
    assert compared.axis == "modality"
    assert {cell.trained for cell in compared.cells} == {"base", "ct"}
    assert {name: mean.cells for name, mean in compared.means.items()} == {
        "in-domain": 1,
        "cross-domain": 7,
        "all cells": 8,
    }


def test_printed_differences_are_not_among_ours() -> None:
    first, *_ = compare(run(), run("b"), 100, 1)
    assert not any(cell.difference for cell in first.cells), "the paper's would not be zero"
    assert published_table("modality").at("mri", "ct") == 16.94
    assert "published" not in rows_of(first.cells, 4)[0]


def changed(run: RunPredictions, name: str, change: Any) -> RunPredictions:
    return RunPredictions(
        run.source, {**run.predictions, name: change(run.predictions[name])}, run.facts
    )


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            run("b", facts={"split kind": "published"}),
            r"a has the split kind grouped, b published: .*splits.kind in params.yaml",
        ),
        (run("b", facts={"corpus": "md5:b"}), r"a has the corpus md5:a, b md5:b"),
        (
            RunPredictions("b", {"base": PREDICTIONS["base"]}, FACTS),
            r"b/ct.parquet not found, but a has it; make it with `dvc repro evaluate@ct`",
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
            (
                r"b/oct.parquet: question 'Phantom_\d+': gold 'E', but .[A-D]. in a/oct.parquet;"
                r" evaluate both"
            ),
        ),
    ],
)
def test_what_cannot_be_paired_is_refused_by_file_and_question(
    second: RunPredictions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_comparable(run("a"), second)


def test_runs_without_a_checkpoint_are_refused() -> None:
    only = RunPredictions("a", {"base": PREDICTIONS["base"]}, FACTS)
    with pytest.raises(InputError, match="have no checkpoint in common but the base"):
        compare(only, only, 100, 1)


def test_files_of_one_run_must_agree_and_say_where_they_come_from() -> None:
    said = {"corpus": "md5:a", "params": {"splits.kind": "grouped", "prompt": {"style": "think"}}}
    assert common_facts({"a": said, "b": said}) == {
        "split kind": "grouped",
        "corpus": "md5:a",
        "prompt style": "think",
    }
    other = {
        "corpus": "md5:a",
        "params": {"splits.kind": "grouped", "prompt": {"style": "no-think"}},
    }
    with pytest.raises(
        InputError,
        match=(
            "a and b are in one directory, but the prompt style is think in the first and no-think"
        ),
    ):
        common_facts({"a": said, "b": other})
    with pytest.raises(InputError, match="a does not say with which split kind it was made"):
        common_facts({"a": {"corpus": "md5:a", "params": {}}})
