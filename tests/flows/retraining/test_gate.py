"""The gate, on drawn predictions: who goes through, who does not, and what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.retraining.gate import PairedPredictions, judge
from stages.core.errors import InputError
from stages.core.params import Retrain
from stages.core.yaml_files import read_yaml
from tests.fakes import REPOSITORY, make_predictions, make_questions

RULE = Retrain.model_validate(read_yaml(REPOSITORY / "params.yaml")["retrain"])
QUESTIONS = make_questions(per_cell=80)


def rule(**changes: Any) -> Retrain:
    return RULE.model_copy(update=changes)


def answers(name: str, share: float, seed: int = 0, only: str | None = None) -> pd.DataFrame:
    """Predictions of which `share` are right, of cell `only` if given and half of the others'."""
    rows = make_predictions(QUESTIONS, name)
    rng = np.random.default_rng(seed)
    shares = np.where(rows["modality"] == only, share, 0.5) if only else np.full(len(rows), share)
    rows["correct"] = rng.random(len(rows)) < shares
    return rows


def contest(
    name: str, before: float, after: float, axis: str = "modality", **more: Any
) -> PairedPredictions:
    return PairedPredictions(axis, name, answers(name, before, 1), answers(name, after, 2), **more)


def verdict(contests: dict[str, PairedPredictions], used: Retrain = RULE, **more: Any) -> Any:
    return judge(contests, used, 1000, 42, **more)


def test_a_challenger_that_is_clearly_better_goes_through() -> None:
    found = verdict({"ct": contest("ct", 0.4, 0.8)})
    assert found.promote
    assert found.reasons == ("none of 1 is worse by more than 10 points; better for certain: ct",)
    own = found.judgements["ct"].own
    assert own.low > 0
    assert own.first > own.second
    assert own.n == len(make_predictions(QUESTIONS, "ct").query("modality == 'ct'"))


def test_one_that_is_clearly_worse_holds_up_all() -> None:
    found = verdict({"ct": contest("ct", 0.4, 0.8), "mri": contest("mri", 0.8, 0.4)})
    assert not found.promote
    assert all(reason.startswith("mri ") for reason in found.reasons)
    assert "mri on its own test" in found.reasons[0]
    assert "it may be worse by more than 10 (retrain.max_loss)" in found.reasons[0]
    assert found.judgements["ct"].better


def test_no_difference_is_not_better() -> None:
    same = answers("ct", 0.5)
    contests = {"ct": PairedPredictions("modality", "ct", same, same)}
    found = verdict(contests)
    assert not found.promote
    assert found.reasons == (
        (
            "0 of 1 checkpoints are better for certain on their own test; retrain.min_better asks"
            " for 1"
        ),
    )
    assert verdict(contests, rule(min_better=0)).promote


def test_a_loss_elsewhere_than_on_its_own_test_counts_by_the_mean_over_the_axis() -> None:
    worse_elsewhere = PairedPredictions(
        "modality", "ct", answers("ct", 0.5, 1), answers("ct", 0.95, 2, only="ct")
    )
    worse_elsewhere.challenger.loc[worse_elsewhere.challenger["modality"] != "ct", "correct"] = (
        False
    )
    found = verdict({"ct": worse_elsewhere})
    assert not found.promote
    assert found.judgements["ct"].better
    assert "ct in the mean over its axis" in found.reasons[0]


def test_a_named_cell_may_not_lose_a_question_on_balance() -> None:
    pair = PairedPredictions("modality", "ct", answers("ct", 0.5, 1), answers("ct", 0.95, 2))
    cell = pair.champion["modality"] == "mri"
    pair.challenger.loc[cell, "correct"] = pair.champion.loc[cell, "correct"]
    right = pair.champion.index[cell & pair.champion["correct"]]
    pair.challenger.loc[right[0], "correct"] = False
    assert verdict({"ct": pair}).promote
    found = verdict({"ct": pair}, rule(never_worse=["ct/mri"]))
    assert found.reasons == (
        "ct on mri: 1 questions lost, 0 won; retrain.never_worse names this cell",
    )


def test_too_few_questions_are_no_ground_to_promote() -> None:
    found = verdict({"ct": contest("ct", 0.1, 0.9)}, rule(min_test_questions=1000))
    assert not found.promote
    assert (
        "test questions of its own can be asked of both; retrain.min_test_questions asks for 1000"
        in found.reasons[0]
    )


def test_images_that_one_side_was_trained_on_are_left_out() -> None:
    pair = contest("ct", 0.5, 0.5)
    images = frozenset(pair.champion.loc[pair.champion["modality"] == "ct", "image"].unique()[:20])
    unfair = pair.champion["image"].isin(images)
    pair.champion.loc[unfair, "correct"] = True
    pair.challenger.loc[unfair, "correct"] = False
    found = judge(
        {"ct": PairedPredictions("modality", "ct", pair.champion, pair.challenger, images)},
        RULE,
        1000,
        42,
    ).judgements["ct"]
    assert found.left_out == int(unfair.sum())
    assert found.own is not None
    assert found.own.n == int((~unfair & (pair.champion["modality"] == "ct")).sum())
    assert found.own.difference > verdict({"ct": pair}).judgements["ct"].own.difference + 0.1


def test_without_a_question_to_ask_of_both_nothing_is_judged() -> None:
    pair = contest("ct", 0.1, 0.9, excluded_images=frozenset(QUESTIONS["image"]))
    found = verdict({"ct": pair})
    assert found.judgements["ct"].own is None
    assert found.reasons[0].startswith("ct: 0 test questions of its own can be asked of both")


def test_many_checkpoints_raise_the_bar_for_each() -> None:
    """A difference that is sure by itself is not, when it is the luckiest of thirteen."""
    flat = {
        name: contest(name, 0.5, 0.5)
        for name in ("mri", "x-ray", "ultrasound", "dermoscopy", "fundus", "oct", "microscopy")
    }
    alone = next(
        pair
        for after in np.arange(0.55, 0.8, 0.01)
        if 0.01
        < verdict({"ct": (pair := contest("ct", 0.5, float(after)))}).judgements["ct"].p
        < 0.05
    )
    assert verdict({"ct": alone}).judgements["ct"].p < 0.05
    among = verdict({"ct": alone, **flat}).judgements["ct"]
    assert among.p > 0.05
    assert not among.better


def test_a_checkpoint_that_is_gone_and_none_to_judge_are_said() -> None:
    found = verdict({}, gone=["oct"])
    assert not found.promote
    assert found.reasons == (
        "oct is not among the challengers any more",
        "no checkpoint was retrained: there is no challenger",
    )


def test_sides_that_answered_other_questions_are_refused() -> None:
    pair = contest("ct", 0.5, 0.6)
    with pytest.raises(
        InputError,
        match=(
            r"the champion's answers/ct.parquet: question '.*' is one of 1 that only the"
            r" challenger's answers"
        ),
    ):
        verdict(
            {"ct": PairedPredictions("modality", "ct", pair.champion.iloc[1:], pair.challenger)}
        )


def test_an_sft_checkpoint_is_judged_on_the_test_of_its_split() -> None:
    pair = contest("ct", 0.4, 0.8)
    assert verdict({"sft-ct": pair}).judgements["sft-ct"].better
