"""The numbers of the report, against a few lines of pandas."""

import json

import numpy as np
import pandas as pd
import pytest

from stages.scoring.metrics import compute_metrics
from stages.scoring.statistics import paired_interval, wilson_interval
from stages.scoring.tables import CELLS
from tests.fakes import CHECKPOINTS, make_predictions, make_questions

QUESTIONS = make_questions(per_cell=8)
PREDICTIONS = {name: make_predictions(QUESTIONS, name) for name in ["base", *CHECKPOINTS]}
METRICS = compute_metrics(PREDICTIONS, CHECKPOINTS, samples=500, seed=3)


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
    assert (found["low"], found["high"]) == pytest.approx(paired_interval(after, before, 500, 3), abs=5e-5)
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(wilson_interval(after.sum(), len(after)), abs=5e-5)
    assert found["chance"] == round(np.mean(1 / own["n_options"]), 4)
    assert sum(cell["n"] for cell in found["by_dataset"].values()) == len(own)


def test_the_summary_sums_up_the_checkpoints() -> None:
    own = pd.DataFrame([entry["in_domain"] for entry in METRICS["checkpoints"].values()])
    summary = METRICS["summary"]
    assert list(METRICS) == ["summary", "base", "checkpoints"]
    assert summary["checkpoints"] == 13
    assert summary["base_micro"] == round(PREDICTIONS["base"]["correct"].mean(), 4)
    for name, column in {"in_domain_base": "base", "in_domain": "accuracy", "in_domain_gain": "gain"}.items():
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
    predictions = {name: rows[rows["modality"] != "oct"] for name, rows in PREDICTIONS.items() if name in ("base", "ct")}
    found = compute_metrics(predictions, {"ct": "modality"}, samples=100, seed=1)
    assert list(found["base"]) == ["modality"]
    assert found["checkpoints"]["ct"]["by_modality"]["oct"] == {"accuracy": None, "n": 0}
    assert found["checkpoints"]["ct"]["macro"] is None
    assert "NaN" not in json.dumps(found)
