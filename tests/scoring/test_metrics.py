"""The numbers of the report, against a few lines of pandas."""

import json
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.scoring.metrics import compute_metrics
from stages.scoring.statistics import (
    cluster_interval,
    holm,
    mcnemar,
    paired_interval,
    wilson_interval,
)
from stages.scoring.tables import CELLS, Target
from tests.fakes import CHECKPOINTS, make_blind_baselines, make_predictions, make_questions

QUESTIONS = make_questions(per_cell=8)
PREDICTIONS = {name: make_predictions(QUESTIONS, name) for name in ["base", *CHECKPOINTS]}
TARGETS = {name: Target(axis, name) for name, axis in CHECKPOINTS.items()}
BLIND_BASELINES = make_blind_baselines(QUESTIONS)
METRICS = compute_metrics(
    PREDICTIONS, TARGETS, samples=500, seed=3, blind_baselines=BLIND_BASELINES
)


def on_own_questions(name: str, of: str) -> pd.DataFrame:
    axis = CHECKPOINTS[name]
    rows = PREDICTIONS[of]
    return rows[rows[f"{axis}_test"] & (rows[CELLS[axis]] == name)].sort_values("question_id")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_in_domain_compares_with_the_base_on_the_same_questions(name: str) -> None:
    own, same = on_own_questions(name, name), on_own_questions(name, "base")
    after, before = own["correct"].to_numpy(bool), same["correct"].to_numpy(bool)
    found = METRICS["checkpoints"][name]["in_domain"]
    assert found["n"] == len(own)
    assert found["accuracy"] == round(after.mean(), 4)
    assert found["base"] == round(before.mean(), 4)
    assert found["gain"] == round(after.mean() - before.mean(), 4)
    assert (found["low"], found["high"]) == pytest.approx(
        paired_interval(after, before, 500, 3, own["image"]), abs=5e-5
    )
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(
        wilson_interval(after.sum(), len(after)), abs=5e-5
    )
    assert found["chance"] == round(np.mean(1 / own["n_options"]), 4)
    assert sum(cell["n"] for cell in found["by_dataset"].values()) == len(own)


def test_the_summary_sums_up_the_checkpoints() -> None:
    own = pd.DataFrame([entry["in_domain"] for entry in METRICS["checkpoints"].values()])
    summary = METRICS["summary"]
    assert list(METRICS) == ["summary", "base", "checkpoints"]
    assert summary["checkpoints"] == 13
    assert summary["base_micro"] == round(PREDICTIONS["base"]["correct"].mean(), 4)
    for name, column in {
        "in_domain_base": "base",
        "in_domain": "accuracy",
        "in_domain_gain": "gain",
    }.items():
        assert summary[name] == pytest.approx(own[column].mean(), abs=1e-4)
    assert summary["beat_base"] == (own["gain"] > 0).sum()
    assert summary["above_zero"] == (own["low"] > 0).sum()
    assert summary["below_zero"] == (own["high"] < 0).sum()


@pytest.mark.parametrize("name", ["base", *CHECKPOINTS])
def test_results_are_those_of_the_test_questions_of_the_axis(name: str) -> None:
    for axis in [CHECKPOINTS[name]] if name != "base" else ["modality", "task"]:
        found = METRICS["checkpoints"][name] if name != "base" else METRICS["base"][axis]
        rows = PREDICTIONS[name][PREDICTIONS[name][f"{axis}_test"]]
        assert found["n"] == len(rows)
        assert found["micro"] == round(rows["correct"].mean(), 4)
        assert found["macro"] == round(rows.groupby(CELLS[axis])["correct"].mean().mean(), 4)
        assert found["format_rate"] == round(rows["answer"].notna().mean(), 4)
        assert found["completion_tokens"] == round(rows["completion_tokens"].mean(), 4)
        for column in ("modality", "question_type"):
            assert sum(cell["n"] for cell in found[f"by_{column}"].values()) == len(rows)


def test_a_missing_accuracy_is_null_and_never_a_number() -> None:
    predictions = {
        name: rows[rows["modality"] != "oct"]
        for name, rows in PREDICTIONS.items()
        if name in ("base", "ct")
    }
    found = compute_metrics(predictions, {"ct": Target("modality", "ct")}, samples=100, seed=1)
    assert list(found["base"]) == ["modality"]
    assert found["checkpoints"]["ct"]["by_modality"]["oct"] == {"accuracy": None, "n": 0}
    assert found["checkpoints"]["ct"]["macro"] is None
    assert "NaN" not in json.dumps(found)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_gain_is_tested_exactly_and_for_the_whole_family(name: str) -> None:
    tests = {}
    for each in CHECKPOINTS:
        own, same = on_own_questions(each, each), on_own_questions(each, "base")
        tests[each] = mcnemar(own["correct"].to_numpy(bool), same["correct"].to_numpy(bool))
    found = METRICS["checkpoints"][name]["in_domain"]
    assert (found["won"], found["lost"]) == (tests[name].won, tests[name].lost)
    assert found["p"] == pytest.approx(tests[name].p, rel=5e-3)
    assert found["p_holm"] == pytest.approx(
        holm({each: test.p for each, test in tests.items()})[name], rel=5e-3
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_blind_baseline_stands_beside_the_accuracy_on_the_same_questions(name: str) -> None:
    own, blind_baseline = on_own_questions(name, name), BLIND_BASELINES[CHECKPOINTS[name], name]
    found, rule = METRICS["checkpoints"][name]["in_domain"], blind_baseline.rules["as_written"]
    credit = own["question_id"].map(rule.credit)
    assert found["blind_baseline"]["accuracy"] == round(rule.accuracy, 4) == round(credit.mean(), 4)
    assert found["blind_baseline"]["normalised"] == round(
        blind_baseline.rules["normalised"].accuracy, 4
    )
    assert found["blind_baseline"]["above"] == pytest.approx(
        own["correct"].mean() - rule.accuracy, abs=1e-4
    )
    over = (own["correct"] - credit).round(9)
    assert (
        found["blind_baseline"]["above_low"],
        found["blind_baseline"]["above_high"],
    ) == pytest.approx(cluster_interval(over, own["image"], 500, 3), abs=5e-5)
    assert found["majority"]["letter"] == blind_baseline.letter
    chosen = own[own["question_id"].isin(rule.balanced)]
    assert found["balanced"]["n"] == len(chosen) == len(rule.balanced)
    assert found["balanced"]["accuracy"] == (
        round(chosen["correct"].mean(), 4) if len(chosen) else None
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("variant", ["shuffled", "blank"])
def test_what_the_image_contributes_is_paired(name: str, variant: str) -> None:
    for key, of in (("visual", name), ("base_visual", "base")):
        own = on_own_questions(name, of)
        seen, unseen = own["correct"].to_numpy(bool), own[f"{variant}_correct"].to_numpy(bool)
        found = METRICS["checkpoints"][name]["in_domain"][key][variant]
        assert found["n"] == len(own)
        assert found["gain"] == pytest.approx(seen.mean() - unseen.mean(), abs=1e-4)
        assert (found["low"], found["high"]) == pytest.approx(
            paired_interval(seen, unseen, 500, 3, own["image"]), abs=5e-5
        )


def test_the_base_is_scored_as_published_and_fairly() -> None:
    own = METRICS["checkpoints"]["ct"]["in_domain"]
    assert own["base_scored"]["fair"] == own["base"]
    assert own["base_scored"]["zero-shot"] == 0.0, (
        "it was asked for tags, and a tag is not the bare letter"
    )
    assert own["base_scored"]["tag"] == own["base"]


def test_signs_of_reward_hacking_are_counted_for_each_checkpoint() -> None:
    changed = PREDICTIONS["ct"].assign(output="<answer>A</answer><answer>B</answer>")
    found = compute_metrics(PREDICTIONS | {"ct": changed}, TARGETS, samples=100, seed=3)
    assert [
        indicator["name"]
        for indicator in found["checkpoints"]["ct"]["hacking"]
        if indicator["triggered"]
    ] == ["repeated tags"]
    indicators = [
        indicator["triggered"]
        for entry in found["checkpoints"].values()
        for indicator in entry["hacking"]
    ]
    assert (len(indicators), sum(indicators)) == (
        5 * 13,
        found["summary"]["reward_hacking_indicators"],
    )


def test_without_ablations_and_blind_baselines_their_numbers_are_missing_and_never_zero() -> None:
    blind = {name: make_predictions(QUESTIONS, name, ablations=False) for name in PREDICTIONS}
    found = compute_metrics(blind, TARGETS, samples=100, seed=3)
    for entry in found["checkpoints"].values():
        own = entry["in_domain"]
        assert own["visual"] == own["base_visual"] == {"blank": None, "shuffled": None}
        assert (
            own["blind_baseline"]
            is own["majority"]
            is own["balanced"]
            is entry["visual_gain"]
            is None
        )
        assert all(
            cell["blind_baseline"] is cell["visual_gain"] is None
            for cell in own["by_dataset"].values()
        )
    summary = found["summary"]
    assert (
        summary["blind_baseline"]
        is summary["visual_gain"]
        is summary["above_blind_baseline"]
        is summary["sees"]
        is None
    )
    for name in ("in_domain", "in_domain_gain", "beat_base"):
        assert summary[name] == METRICS["summary"][name]


def test_questions_that_were_asked_one_way_only_do_not_count_for_the_image() -> None:
    ct = PREDICTIONS["ct"].copy()
    half = ct["question_id"].isin(ct["question_id"].iloc[::2])
    columns = ct.columns[ct.columns.str.startswith("shuffled_")]
    ct[columns] = ct[columns].astype(object)
    ct.loc[half, columns] = None
    found = compute_metrics(
        {"base": PREDICTIONS["base"], "ct": ct},
        {"ct": Target("modality", "ct")},
        samples=100,
        seed=3,
    )
    visual = found["checkpoints"]["ct"]["in_domain"]["visual"]["shuffled"]
    asked = ct[~half & ct["modality_test"] & (ct["modality"] == "ct")]
    assert visual["n"] == len(asked)
    assert visual["gain"] == pytest.approx(
        asked["correct"].mean() - asked["shuffled_correct"].astype(float).mean(), abs=1e-4
    )


def test_a_checkpoint_need_not_be_called_after_what_it_was_trained_on() -> None:
    targets = {"ct": Target("modality", "ct"), "sft-ct": Target("modality", "ct", "sft")}
    rows = {name: PREDICTIONS[name] for name in ("base", "ct")}
    rows["sft-ct"] = make_predictions(QUESTIONS, "sft-ct", cell="ct")
    found = compute_metrics(rows, targets, samples=500, seed=3)
    assert (
        found["checkpoints"]["sft-ct"]["in_domain"]["n"]
        == found["checkpoints"]["ct"]["in_domain"]["n"]
    )
    assert found["summary"]["checkpoints"] == 1, "the summary is of GRPO"
    assert found["summary"]["in_domain"] == found["checkpoints"]["ct"]["in_domain"]["accuracy"]
    rival = found["checkpoints"]["sft-ct"]["in_domain"]["grpo"]
    accuracies = [found["checkpoints"][name]["in_domain"]["accuracy"] for name in ("ct", "sft-ct")]
    assert rival["checkpoint"] == "ct"
    assert rival["gain"] == pytest.approx(accuracies[0] - accuracies[1], abs=2e-4)
    assert "grpo" not in found["checkpoints"]["ct"]["in_domain"]
    alone = {"sft-ct": targets["sft-ct"]}
    assert compute_metrics(rows, alone, samples=100, seed=3)["summary"]["checkpoints"] == 1


def test_a_blind_baseline_of_other_questions_is_refused() -> None:
    blind_baselines = {("modality", "ct"): BLIND_BASELINES["modality", "mri"]}
    with pytest.raises(
        InputError,
        match=(
            r"the blind baseline of modality/mri .* is of other questions .* run `dvc repro prior`"
        ),
    ):
        compute_metrics(PREDICTIONS, TARGETS, samples=100, seed=3, blind_baselines=blind_baselines)


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_number(chance: random.Random) -> None:
    few = {"ct": TARGETS["ct"], "lesion-grading": TARGETS["lesion-grading"]}
    given_ = {name: PREDICTIONS[name] for name in ("base", *few)}
    shuffled = {
        name: rows.sample(frac=1, random_state=chance.randrange(10**6))
        for name, rows in given_.items()
    }
    assert compute_metrics(
        shuffled, few, samples=100, seed=3, blind_baselines=BLIND_BASELINES
    ) == compute_metrics(given_, few, samples=100, seed=3, blind_baselines=BLIND_BASELINES)
