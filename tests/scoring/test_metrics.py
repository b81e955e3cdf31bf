"""The numbers of the report, compared with a few lines of pandas."""

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
from tests.omnimedvqa import AXES

QUESTIONS = make_questions(per_cell=8)
PREDICTIONS = {name: make_predictions(QUESTIONS, name) for name in ["base", *CHECKPOINTS]}
TARGETS = {name: Target(axis, name) for name, axis in CHECKPOINTS.items()}
BLIND_BASELINES = make_blind_baselines(QUESTIONS)
METRICS = compute_metrics(
    PREDICTIONS, TARGETS, samples=500, seed=3, blind_baselines=BLIND_BASELINES, axes=AXES
)


def on_own_questions(name: str, of: str) -> pd.DataFrame:
    """Predictions of `of` for the in-domain questions of checkpoint `name`."""
    axis = CHECKPOINTS[name]
    rows = PREDICTIONS[of]
    return rows[rows[f"{axis}_test"] & (rows[CELLS[axis]] == name)].sort_values("question_id")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_in_domain_compares_with_the_base_on_the_same_questions(name: str) -> None:
    own = on_own_questions(name, name)
    after = own["correct"].to_numpy(bool)
    before = on_own_questions(name, "base")["correct"].to_numpy(bool)
    results = METRICS["checkpoints"][name]["in_domain"]
    assert results["n"] == len(own)
    assert results["accuracy"] == round(after.mean(), 4)
    assert results["base"] == round(before.mean(), 4)
    assert results["gain"] == round(after.mean() - before.mean(), 4)
    assert (results["low"], results["high"]) == pytest.approx(
        paired_interval(after, before, 500, 3, own["image"]), abs=5e-5
    )
    assert (results["accuracy_low"], results["accuracy_high"]) == pytest.approx(
        wilson_interval(after.sum(), len(after)), abs=5e-5
    )
    assert results["chance"] == round(np.mean(1 / own["n_options"]), 4)
    assert sum(cell["n"] for cell in results["by_dataset"].values()) == len(own)


def test_the_summary_averages_and_counts_over_the_checkpoints() -> None:
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
def test_results_cover_the_test_questions_of_the_axis(name: str) -> None:
    for axis in [CHECKPOINTS[name]] if name != "base" else ["modality", "task"]:
        results = METRICS["checkpoints"][name] if name != "base" else METRICS["base"][axis]
        rows = PREDICTIONS[name][PREDICTIONS[name][f"{axis}_test"]]
        assert results["n"] == len(rows)
        assert results["micro"] == round(rows["correct"].mean(), 4)
        assert results["macro"] == round(rows.groupby(CELLS[axis])["correct"].mean().mean(), 4)
        assert results["format_rate"] == round(rows["answer"].notna().mean(), 4)
        assert results["completion_tokens"] == round(rows["completion_tokens"].mean(), 4)
        for column in ("modality", "question_type"):
            assert sum(cell["n"] for cell in results[f"by_{column}"].values()) == len(rows)


def test_a_missing_accuracy_is_null() -> None:
    predictions = {
        name: rows[rows["modality"] != "oct"]
        for name, rows in PREDICTIONS.items()
        if name in ("base", "ct")
    }
    metrics = compute_metrics(
        predictions, {"ct": Target("modality", "ct")}, samples=100, seed=1, axes=AXES
    )
    assert list(metrics["base"]) == ["modality"]
    assert metrics["checkpoints"]["ct"]["by_modality"]["oct"] == {"accuracy": None, "n": 0}
    assert metrics["checkpoints"]["ct"]["macro"] is None
    assert "NaN" not in json.dumps(metrics)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_p_values_are_exact_and_adjusted_over_all_checkpoints(name: str) -> None:
    tests = {}
    for each in CHECKPOINTS:
        own = on_own_questions(each, each)["correct"].to_numpy(bool)
        base = on_own_questions(each, "base")["correct"].to_numpy(bool)
        tests[each] = mcnemar(own, base)
    results = METRICS["checkpoints"][name]["in_domain"]
    assert (results["won"], results["lost"]) == (tests[name].won, tests[name].lost)
    assert results["p"] == pytest.approx(tests[name].p, rel=5e-3)
    assert results["p_holm"] == pytest.approx(
        holm({each: test.p for each, test in tests.items()})[name], rel=5e-3
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_blind_baseline_is_on_the_same_questions_as_the_accuracy(name: str) -> None:
    own = on_own_questions(name, name)
    blind_baseline = BLIND_BASELINES[CHECKPOINTS[name], name]
    rule = blind_baseline.rules["as_written"]
    normalised = blind_baseline.rules["normalised"]
    credit = own["question_id"].map(rule.credit)
    in_domain = METRICS["checkpoints"][name]["in_domain"]
    result = in_domain["blind_baseline"]
    assert result["accuracy"] == round(rule.accuracy, 4) == round(credit.mean(), 4)
    assert result["normalised"] == round(normalised.accuracy, 4)
    assert result["above"] == pytest.approx(own["correct"].mean() - rule.accuracy, abs=1e-4)
    above = (own["correct"] - credit).round(9)
    assert (result["above_low"], result["above_high"]) == pytest.approx(
        cluster_interval(above, own["image"], 500, 3), abs=5e-5
    )
    assert in_domain["majority"]["letter"] == blind_baseline.letter
    subset = own[own["question_id"].isin(rule.balanced)]
    accuracy = round(subset["correct"].mean(), 4) if len(subset) else None
    assert in_domain["balanced"]["n"] == len(subset) == len(rule.balanced)
    assert in_domain["balanced"]["accuracy"] == accuracy


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("variant", ["shuffled", "blank"])
def test_visual_gains_are_paired(name: str, variant: str) -> None:
    for key, of in (("visual", name), ("base_visual", "base")):
        own = on_own_questions(name, of)
        seen = own["correct"].to_numpy(bool)
        unseen = own[f"{variant}_correct"].to_numpy(bool)
        results = METRICS["checkpoints"][name]["in_domain"][key][variant]
        assert results["n"] == len(own)
        assert results["gain"] == pytest.approx(seen.mean() - unseen.mean(), abs=1e-4)
        assert (results["low"], results["high"]) == pytest.approx(
            paired_interval(seen, unseen, 500, 3, own["image"]), abs=5e-5
        )


def test_the_base_is_scored_as_published_and_fairly() -> None:
    own = METRICS["checkpoints"]["ct"]["in_domain"]
    assert own["base_scored"]["fair"] == own["base"]
    assert own["base_scored"]["zero-shot"] == 0.0, (
        "its prompt requests tags, and a tag is not the bare letter"
    )
    assert own["base_scored"]["tag"] == own["base"]


def test_triggered_indicators_are_counted_per_checkpoint() -> None:
    changed = PREDICTIONS["ct"].assign(output="<answer>A</answer><answer>B</answer>")
    metrics = compute_metrics(
        PREDICTIONS | {"ct": changed}, TARGETS, samples=100, seed=3, axes=AXES
    )
    assert [
        indicator["name"]
        for indicator in metrics["checkpoints"]["ct"]["hacking"]
        if indicator["triggered"]
    ] == ["repeated tags"]
    triggered: list[bool] = []
    for entry in metrics["checkpoints"].values():
        triggered += [indicator["triggered"] for indicator in entry["hacking"]]
    assert len(triggered) == 5 * 13
    assert sum(triggered) == metrics["summary"]["reward_hacking_indicators"]


def test_without_ablations_and_blind_baselines_their_numbers_are_none() -> None:
    blind = {name: make_predictions(QUESTIONS, name, ablations=False) for name in PREDICTIONS}
    metrics = compute_metrics(blind, TARGETS, samples=100, seed=3, axes=AXES)
    for entry in metrics["checkpoints"].values():
        own = entry["in_domain"]
        assert own["visual"] == own["base_visual"] == {"blank": None, "shuffled": None}
        assert entry["visual_gain"] is None
        assert {own[key] for key in ("blind_baseline", "majority", "balanced")} == {None}
        for cell in own["by_dataset"].values():
            assert cell["blind_baseline"] is cell["visual_gain"] is None
    summary = metrics["summary"]
    for name in ("blind_baseline", "visual_gain", "above_blind_baseline", "sees"):
        assert summary[name] is None
    for name in ("in_domain", "in_domain_gain", "beat_base"):
        assert summary[name] == METRICS["summary"][name]


def test_questions_without_an_ablation_do_not_count_for_visual_gain() -> None:
    ct = PREDICTIONS["ct"].copy()
    half = ct["question_id"].isin(ct["question_id"].iloc[::2])
    columns = ct.columns[ct.columns.str.startswith("shuffled_")]
    ct[columns] = ct[columns].astype(object)
    ct.loc[half, columns] = None
    metrics = compute_metrics(
        {"base": PREDICTIONS["base"], "ct": ct},
        {"ct": Target("modality", "ct")},
        samples=100,
        seed=3,
        axes=AXES,
    )
    visual = metrics["checkpoints"]["ct"]["in_domain"]["visual"]["shuffled"]
    both = ct[~half & ct["modality_test"] & (ct["modality"] == "ct")]
    assert visual["n"] == len(both)
    assert visual["gain"] == pytest.approx(
        both["correct"].mean() - both["shuffled_correct"].astype(float).mean(), abs=1e-4
    )


def test_a_checkpoint_of_another_method_is_compared_with_that_of_grpo() -> None:
    targets = {"ct": Target("modality", "ct"), "sft-ct": Target("modality", "ct", "sft")}
    rows = {name: PREDICTIONS[name] for name in ("base", "ct")}
    rows["sft-ct"] = make_predictions(QUESTIONS, "sft-ct", cell="ct")
    metrics = compute_metrics(rows, targets, samples=500, seed=3, axes=AXES)
    assert (
        metrics["checkpoints"]["sft-ct"]["in_domain"]["n"]
        == metrics["checkpoints"]["ct"]["in_domain"]["n"]
    )
    assert metrics["summary"]["checkpoints"] == 1, "the summary is of GRPO"
    assert metrics["summary"]["in_domain"] == metrics["checkpoints"]["ct"]["in_domain"]["accuracy"]
    rival = metrics["checkpoints"]["sft-ct"]["in_domain"]["grpo"]
    accuracies = [
        metrics["checkpoints"][name]["in_domain"]["accuracy"] for name in ("ct", "sft-ct")
    ]
    assert rival["checkpoint"] == "ct"
    assert rival["gain"] == pytest.approx(accuracies[0] - accuracies[1], abs=2e-4)
    assert "grpo" not in metrics["checkpoints"]["ct"]["in_domain"]
    alone = {"sft-ct": targets["sft-ct"]}
    assert (
        compute_metrics(rows, alone, samples=100, seed=3, axes=AXES)["summary"]["checkpoints"] == 1
    )


def test_a_blind_baseline_of_other_questions_is_refused() -> None:
    blind_baselines = {("modality", "ct"): BLIND_BASELINES["modality", "mri"]}
    with pytest.raises(
        InputError,
        match=(r"modality/mri .* run `dvc repro prior`"),
    ):
        compute_metrics(
            PREDICTIONS, TARGETS, samples=100, seed=3, blind_baselines=blind_baselines, axes=AXES
        )


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_number(chance: random.Random) -> None:
    few = {"ct": TARGETS["ct"], "lesion-grading": TARGETS["lesion-grading"]}
    ordered = {name: PREDICTIONS[name] for name in ("base", *few)}
    shuffled = {
        name: rows.sample(frac=1, random_state=chance.randrange(10**6))
        for name, rows in ordered.items()
    }
    first, second = (
        compute_metrics(rows, few, samples=100, seed=3, blind_baselines=BLIND_BASELINES, axes=AXES)
        for rows in (ordered, shuffled)
    )
    assert first == second
