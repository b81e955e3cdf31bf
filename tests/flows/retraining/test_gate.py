"""The promotion gate on random predictions: verdicts and reasons."""

from __future__ import annotations

from dataclasses import replace
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
    """Predictions with a `share` of correct ones; with `only`, in that cell, and half elsewhere."""
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


def test_a_clearly_better_challenger_is_promoted() -> None:
    result = verdict({"ct": contest("ct", 0.4, 0.8)})
    assert result.promote
    (reason,) = result.reasons
    assert reason.endswith("better: ct")
    own = result.judgements["ct"].own
    assert own.low > 0
    assert own.first > own.second
    assert own.n == len(make_predictions(QUESTIONS, "ct").query("modality == 'ct'"))


def test_a_joint_checkpoint_is_judged_on_all_its_parts() -> None:
    joint = contest("ct", 0.4, 0.8)
    joint = replace(joint, cell="cross-sectional", joint=("ct", "mri"))
    result = verdict({"cross-sectional": joint})
    assert result.promote
    own = result.judgements["cross-sectional"].own
    parts = make_predictions(QUESTIONS, "ct").query("modality in ('ct', 'mri')")
    assert own.n == len(parts)
    assert len(result.judgements["cross-sectional"].cells) == 8


def test_one_clearly_worse_checkpoint_blocks_all() -> None:
    result = verdict({"ct": contest("ct", 0.4, 0.8), "mri": contest("mri", 0.8, 0.4)})
    assert not result.promote
    assert all(reason.startswith("mri ") for reason in result.reasons)
    assert "mri on its own test" in result.reasons[0]
    assert "10 (retrain.max_loss)" in result.reasons[0]
    assert result.judgements["ct"].better


def test_no_difference_is_not_better() -> None:
    same = answers("ct", 0.5)
    contests = {"ct": PairedPredictions("modality", "ct", same, same)}
    result = verdict(contests)
    assert not result.promote
    (reason,) = result.reasons
    assert reason.startswith("0 of 1 checkpoints ")
    assert "retrain.min_better requires 1" in reason
    assert verdict(contests, rule(min_better=0)).promote


def test_a_loss_on_other_tests_counts_in_the_mean_over_the_axis() -> None:
    challenger = answers("ct", 0.95, 2, only="ct")
    challenger.loc[challenger["modality"] != "ct", "correct"] = False
    result = verdict({"ct": PairedPredictions("modality", "ct", answers("ct", 0.5, 1), challenger)})
    assert not result.promote
    assert result.judgements["ct"].better
    assert "ct in the mean over its axis" in result.reasons[0]


def test_a_net_loss_of_one_question_in_a_never_worse_cell_blocks_the_promotion() -> None:
    pair = PairedPredictions("modality", "ct", answers("ct", 0.5, 1), answers("ct", 0.95, 2))
    cell = pair.champion["modality"] == "mri"
    pair.challenger.loc[cell, "correct"] = pair.champion.loc[cell, "correct"]
    right = pair.champion.index[cell & pair.champion["correct"]]
    pair.challenger.loc[right[0], "correct"] = False
    assert verdict({"ct": pair}).promote
    (reason,) = verdict({"ct": pair}, rule(never_worse=["ct/mri"])).reasons
    assert reason.startswith("ct on mri: 1 questions lost, 0 won; retrain.never_worse")


def test_too_few_questions_block_the_promotion() -> None:
    result = verdict({"ct": contest("ct", 0.1, 0.9)}, rule(min_test_questions=1000))
    assert not result.promote
    assert result.reasons[0].startswith("ct: ")
    assert "retrain.min_test_questions requires 1000" in result.reasons[0]


def test_images_that_one_side_was_trained_on_are_left_out() -> None:
    pair = contest("ct", 0.5, 0.5)
    images = frozenset(pair.champion.loc[pair.champion["modality"] == "ct", "image"].unique()[:20])
    unfair = pair.champion["image"].isin(images)
    pair.champion.loc[unfair, "correct"] = True
    pair.challenger.loc[unfair, "correct"] = False
    fair_pair = replace(pair, excluded_images=images)
    judgement = verdict({"ct": fair_pair}).judgements["ct"]
    assert judgement.left_out == int(unfair.sum())
    assert judgement.own is not None
    assert judgement.own.n == int((~unfair & (pair.champion["modality"] == "ct")).sum())
    assert judgement.own.difference > verdict({"ct": pair}).judgements["ct"].own.difference + 0.1


def test_a_checkpoint_without_comparable_questions_is_not_judged() -> None:
    pair = contest("ct", 0.1, 0.9, excluded_images=frozenset(QUESTIONS["image"]))
    result = verdict({"ct": pair})
    assert result.judgements["ct"].own is None
    assert result.reasons[0].startswith("ct: only 0 comparable questions")


def test_p_values_are_corrected_for_the_number_of_checkpoints() -> None:
    """A difference that is significant alone need not be the largest of several by chance."""
    flat = {
        name: contest(name, 0.5, 0.5)
        for name in ("mri", "x-ray", "ultrasound", "dermoscopy", "fundus", "oct", "microscopy")
    }
    pairs = (contest("ct", 0.5, float(after)) for after in np.arange(0.55, 0.8, 0.01))
    alone = next(pair for pair in pairs if 0.01 < verdict({"ct": pair}).judgements["ct"].p < 0.05)
    among = verdict({"ct": alone, **flat}).judgements["ct"]
    assert among.p > 0.05
    assert not among.better


def test_removed_checkpoints_and_the_lack_of_challengers_are_reported() -> None:
    result = verdict({}, gone=["oct"])
    assert not result.promote
    assert result.reasons[0].startswith("oct ")
    assert len(result.reasons) == 2


def test_sides_that_answered_different_questions_are_refused() -> None:
    pair = contest("ct", 0.5, 0.6)
    incomplete = replace(pair, champion=pair.champion.iloc[1:])
    with pytest.raises(InputError, match="the champion's answers/ct.parquet: question '.*'"):
        verdict({"ct": incomplete})


def test_an_sft_checkpoint_is_judged_on_the_test_of_its_split() -> None:
    pair = contest("ct", 0.4, 0.8)
    assert verdict({"sft-ct": pair}).judgements["sft-ct"].better
