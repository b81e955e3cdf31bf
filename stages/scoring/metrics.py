"""All numbers of the report, from predictions alone: plain values, rounded, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from stages.corpus.modalities import AXES
from stages.scoring.statistics import paired_interval, wilson_interval
from stages.scoring.tables import Score, in_domain, macro, score, scores_by, tested

DIGITS: Final = 4


def compute_metrics(predictions: Mapping[str, pd.DataFrame], axes: Mapping[str, str], samples: int, seed: int) -> dict[str, Any]:
    """Summary, base and checkpoints: accuracies, counts, and each checkpoint's gain over the base with its interval.

    `predictions` holds a checked table for "base" and for each checkpoint in `axes` (checkpoint -> axis); `samples` and
    `seed` are those of the bootstrap. The base has results on the tests of both axes, a checkpoint on those of its own.
    """
    base = predictions["base"]
    checkpoints = {
        name: {"axis": axis, "in_domain": _in_domain(predictions[name], base, axis, name, samples, seed)}
        | _results(predictions[name], axis)
        for name, axis in axes.items()
    }
    own = pd.DataFrame([entry["in_domain"] for entry in checkpoints.values()])
    summary = {
        "checkpoints": len(checkpoints),
        "base_micro": score(base).accuracy,
        "in_domain_base": own["base"].mean(),
        "in_domain": own["accuracy"].mean(),
        "in_domain_gain": own["gain"].mean(),
        "beat_base": int((own["gain"] > 0).sum()),
        "above_zero": int((own["low"] > 0).sum()),
        "below_zero": int((own["high"] < 0).sum()),
    }
    metrics: dict[str, Any] = _rounded(
        {"summary": summary, "base": {axis: _results(base, axis) for axis in AXES if axis in axes.values()}, "checkpoints": checkpoints}
    )
    return metrics


def _in_domain(rows: pd.DataFrame, base: pd.DataFrame, axis: str, cell: str, samples: int, seed: int) -> dict[str, Any]:
    """One checkpoint and the base on the test questions of the modality or question type it was trained on."""
    own = in_domain(rows, axis, cell).set_index("question_id").sort_index()
    same = base.set_index("question_id").loc[own.index]
    after, before = score(own), score(same)
    low, high = paired_interval(own["correct"].to_numpy(bool), same["correct"].to_numpy(bool), samples, seed)
    accuracy_low, accuracy_high = wilson_interval(after.correct, after.n)
    datasets = {"accuracy": scores_by(own, "dataset"), "base": scores_by(same, "dataset")}
    return {
        "n": after.n,
        "accuracy": after.accuracy,
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "base": before.accuracy,
        "gain": (after.correct - before.correct) / after.n,
        "low": low,
        "high": high,
        "chance": float(np.mean(1 / own["n_options"])),
        "by_dataset": {
            name: {label: found[name].accuracy for label, found in datasets.items()} | {"n": datasets["accuracy"][name].n}
            for name in datasets["accuracy"]
        },
    }


def _results(rows: pd.DataFrame, axis: str) -> dict[str, Any]:
    """One checkpoint, or the base, on all test questions of one axis."""
    rows = tested(rows, axis)
    modalities = scores_by(rows, "modality", AXES["modality"])
    types = scores_by(rows, "question_type", AXES["task"])
    return {
        "n": len(rows),
        "micro": score(rows).accuracy,
        "macro": macro(modalities if axis == "modality" else types),
        "format_rate": float(rows["answer"].notna().mean()),
        "completion_tokens": float(rows["completion_tokens"].mean()),
        "by_modality": _cells(modalities),
        "by_question_type": _cells(types),
    }


def _cells(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: {"accuracy": cell.accuracy, "n": cell.n} for name, cell in scores.items()}


def _rounded(value: Any) -> Any:
    """Floats to `DIGITS` digits, NumPy's among them; -0.0 becomes 0.0."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(float(value), DIGITS) + 0.0 if isinstance(value, float) else value
