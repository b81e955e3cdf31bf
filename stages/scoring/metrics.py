"""All numbers of the report, from predictions and blind baselines: plain, rounded values.

Unknown values are None, never 0: without a blind baseline, without an ablation, or in a cell
without questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any, Final, get_args

import numpy as np
import pandas as pd

from stages.answers.extraction import AnswerForm
from stages.core.errors import InputError
from stages.predictions.schema import ABLATIONS
from stages.prompts.styles import Style
from stages.scoring.baselines import score_every_way
from stages.scoring.blind_baseline import RULES, BlindBaseline
from stages.scoring.contributions import contributions
from stages.scoring.hacking import detect_reward_hacking
from stages.scoring.statistics import (
    bootstrap_cells,
    cluster_interval,
    holm,
    is_significant,
    mcnemar,
    percentiles,
    wilson_interval,
)
from stages.scoring.tables import (
    Score,
    Target,
    macro,
    mean_of_all,
    own_questions,
    score,
    scores_by,
    tested,
    with_ablation,
    without_image,
)
from stages.taxonomy import AXIS_NAMES, Axes

DIGITS: Final = 4
P_VALUES: Final = ("p", "p_holm")
"""Keys of p values, which are rounded to significant digits instead of decimals."""

Interval = Callable[[Any, Any], tuple[float, float]]
"""(values, clusters), one of each per question -> 95% interval of the mean."""
BlindBaselines = Mapping[tuple[str, str], BlindBaseline]
"""(axis, cell) -> blind baseline."""


def compute_metrics(
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    samples: int,
    seed: int,
    *,
    axes: Axes,
    blind_baselines: BlindBaselines | None = None,
    style: Style = "no-think",
) -> dict[str, Any]:
    """Summary, base, checkpoints and, if any, `contributions`: accuracies, gains with intervals.

    `predictions` holds a checked table for "base" and for each checkpoint in `targets`; `samples`
    and `seed` are those of the bootstrap, which resamples images; `style` is that of the prompts.
    The base is scored on the tests of both axes, a checkpoint on those of its own. The summary
    covers the checkpoints trained with GRPO if there are any, else all; p values are adjusted over
    all. Raises InputError if a blind baseline is of other questions than the predictions.
    """
    base = predictions["base"]
    blind_baselines = blind_baselines or {}
    interval = partial(cluster_interval, samples=samples, seed=seed)
    checkpoints = {}
    for name, target in targets.items():
        blind_baseline = blind_baselines.get((target.axis, target.cell))
        rows = predictions[name]
        indicators = detect_reward_hacking(
            tested(rows, target.axis), tested(base, target.axis), style
        )
        checkpoints[name] = {
            **{name: value for name, value in asdict(target).items() if value},
            "in_domain": _in_domain(rows, base, target, blind_baseline, interval),
            **_results(rows, target.axis, axes),
            "hacking": [asdict(indicator) for indicator in indicators],
        }
    p_values = {name: entry["in_domain"]["p"] for name, entry in checkpoints.items()}
    for name, p in holm(p_values).items():
        checkpoints[name]["in_domain"]["p_holm"] = p
    _compare_methods(checkpoints, predictions, targets, interval)
    summarized = [name for name, target in targets.items() if target.method == "grpo"]
    summarized = summarized or list(targets)
    intervals = _macro_intervals(
        predictions, {name: targets[name] for name in summarized}, blind_baselines, samples, seed
    )
    summary = _summary([checkpoints[name] for name in summarized], base)
    trained = {target.axis for target in targets.values()}
    metrics: dict[str, Any] = {
        "summary": {**summary, "intervals": intervals},
        "base": {axis: _results(base, axis, axes) for axis in AXIS_NAMES if axis in trained},
        "checkpoints": checkpoints,
    }
    if parts := contributions(predictions, targets, summarized, samples, seed):
        metrics["contributions"] = parts
    return {name: _rounded(value) for name, value in metrics.items()}


def _summary(entries: Sequence[Mapping[str, Any]], base: pd.DataFrame) -> dict[str, Any]:
    own = [entry["in_domain"] for entry in entries]

    def mean(name: str) -> float | None:
        return mean_of_all([entry[name] for entry in own])

    blind_baselines = [entry["blind_baseline"] for entry in own]
    visual_gains = [entry["visual"]["shuffled"] for entry in own]
    indicators = chain.from_iterable(entry["hacking"] for entry in entries)
    return {
        "checkpoints": len(own),
        "base_micro": score(base).accuracy,
        "in_domain_base": mean("base"),
        "in_domain": mean("accuracy"),
        "in_domain_gain": mean("gain"),
        "chance": mean("chance"),
        "beat_base": sum(entry["gain"] > 0 for entry in own),
        "above_zero": sum(entry["low"] > 0 for entry in own),
        "below_zero": sum(entry["high"] < 0 for entry in own),
        "significant": sum(is_significant(entry["p_holm"]) for entry in own),
        "blind_baseline": mean_of_all([each and each["accuracy"] for each in blind_baselines]),
        "above_blind_baseline": (
            sum(each["above_low"] > 0 for each in blind_baselines) if all(blind_baselines) else None
        ),
        "visual_gain": mean_of_all([_gain(entry["visual"]) for entry in own]),
        "base_visual_gain": mean_of_all([_gain(entry["base_visual"]) for entry in own]),
        "sees": sum(each["low"] > 0 for each in visual_gains) if all(visual_gains) else None,
        "reward_hacking_indicators": sum(indicator["triggered"] for indicator in indicators),
    }


def _macro_intervals(
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    blind_baselines: BlindBaselines,
    samples: int,
    seed: int,
) -> dict[str, list[float] | None]:
    """95% intervals of macro means, images resampled jointly; None where a mean is missing."""
    base = predictions["base"].set_index("question_id")
    # mean -> one cell per checkpoint: values and images, one of each per question
    cells: dict[str, list[tuple[Any, Any]]] = {
        "in_domain": [],
        "in_domain_gain": [],
        "above_blind_baseline": [],
        "visual_gain": [],
    }
    for name, target in targets.items():
        own = own_questions(predictions[name], target)
        correct = own["correct"].to_numpy(float)
        images = own["image"]
        gain = correct - base.loc[own.index, "correct"].to_numpy(float)
        cells["in_domain"].append((correct, images))
        cells["in_domain_gain"].append((gain, images))
        if blind_baseline := blind_baselines.get((target.axis, target.cell)):
            credit = own.index.map(blind_baseline.rules[RULES[0]].credit).to_numpy(float)
            cells["above_blind_baseline"].append((correct - credit, images))
        ablated = with_ablation(own, "shuffled")
        if len(ablated):
            with_image = ablated["correct"].to_numpy(float)
            shuffled = ablated["shuffled_correct"].to_numpy(float)
            cells["visual_gain"].append((with_image - shuffled, ablated["image"]))
    complete = {name: values for name, values in cells.items() if len(values) == len(targets)}
    # (samples, means * checkpoints), all cells in common resamples
    draws = bootstrap_cells(list(chain.from_iterable(complete.values())), samples, seed)
    macro_draws = np.nanmean(draws.reshape(samples, len(complete), len(targets)), axis=2)
    intervals = {
        name: list(percentiles(column))
        for name, column in zip(complete, macro_draws.T, strict=True)
    }
    return {name: intervals.get(name) for name in cells}


def _gain(visual: Mapping[str, dict[str, Any] | None]) -> float | None:
    shuffled = visual["shuffled"]
    return shuffled["gain"] if shuffled else None


def _in_domain(
    rows: pd.DataFrame,
    base: pd.DataFrame,
    target: Target,
    blind_baseline: BlindBaseline | None,
    interval: Interval,
) -> dict[str, Any]:
    """A checkpoint and the base on the in-domain test questions of the checkpoint."""
    own = own_questions(rows, target)
    same = base.set_index("question_id", drop=False).loc[own.index]
    after = own["correct"].to_numpy(bool)
    before = same["correct"].to_numpy(bool)
    low, high = interval(after.astype(int) - before.astype(int), own["image"])
    test = mcnemar(after, before)
    return {
        "n": len(own),
        "images": own["image"].nunique(),
        **_with_interval(score(own)),
        "base": score(same).accuracy,
        "gain": (int(after.sum()) - int(before.sum())) / len(own),
        "low": low,
        "high": high,
        "won": test.won,
        "lost": test.lost,
        "p": test.p,
        "p_holm": None,
        "chance": float(np.mean(1 / own["n_options"])),
        "majority": (
            {"letter": blind_baseline.letter, "accuracy": blind_baseline.letter_accuracy}
            if blind_baseline
            else None
        ),
        "blind_baseline": (
            _above_blind_baseline(own, blind_baseline, interval) if blind_baseline else None
        ),
        "visual": {variant: _visual(own, variant, interval) for variant in ABLATIONS},
        "base_visual": {variant: _visual(same, variant, interval) for variant in ABLATIONS},
        "balanced": _balanced(own, same, blind_baseline) if blind_baseline else None,
        "base_scored": {
            protocol: each.accuracy for protocol, each in score_every_way(same).items()
        },
        "by_dataset": _by_dataset(own, same, blind_baseline),
    }


def _with_interval(micro: Score) -> dict[str, float | None]:
    low, high = wilson_interval(micro.correct, micro.n) if micro.n else (None, None)
    return {"accuracy": micro.accuracy, "accuracy_low": low, "accuracy_high": high}


def _above_blind_baseline(
    own: pd.DataFrame, blind_baseline: BlindBaseline, interval: Interval
) -> dict[str, Any]:
    """The split's blind baseline under both rules, and the accuracy's excess over the first."""
    rule = blind_baseline.rules[RULES[0]]
    if own.index.symmetric_difference(pd.Index(rule.credit)).size:
        raise InputError(
            f"the blind baseline of {blind_baseline.axis}/{blind_baseline.split}"
            f" ({blind_baseline.kind}) is of other questions than the predictions: the splits have"
            " changed since; run `dvc repro prior` and evaluate on the same splits"
        )
    above = own["correct"].to_numpy(float) - own.index.map(rule.credit).to_numpy(float)
    # rounded, so that equal differences fall into one bootstrap class
    low, high = interval(above.round(9), own["image"])
    return {
        "accuracy": rule.accuracy,
        "low": rule.low,
        "high": rule.high,
        "normalised": blind_baseline.rules[RULES[1]].accuracy,
        "pooled": rule.pooled,
        "above": float(above.mean()),
        "above_low": low,
        "above_high": high,
    }


def _visual(own: pd.DataFrame, variant: str, interval: Interval) -> dict[str, Any] | None:
    """Accuracy with the image minus accuracy under an ablation; None without ablated questions."""
    ablated = with_ablation(own, variant)
    if ablated.empty:
        return None
    with_image = score(ablated)
    unseen = score(without_image(ablated, variant))
    low, high = interval(
        ablated["correct"].to_numpy(int) - ablated[f"{variant}_correct"].to_numpy(int),
        ablated["image"],
    )
    return {
        "n": with_image.n,
        "accuracy": unseen.accuracy,
        "gain": (with_image.correct - unseen.correct) / with_image.n,
        "low": low,
        "high": high,
    }


def _balanced(
    own: pd.DataFrame, same: pd.DataFrame, blind_baseline: BlindBaseline
) -> dict[str, Any]:
    """Accuracy on the prior-balanced subset; without an accuracy if the subset is empty."""
    ids = list(blind_baseline.rules[RULES[0]].balanced)
    subset = own.loc[ids]
    return {
        "n": len(ids),
        **_with_interval(score(subset)),
        "base": score(same.loc[ids]).accuracy,
        "chance": float(np.mean(1 / subset["n_options"])) if ids else None,
    }


def _by_dataset(
    own: pd.DataFrame, same: pd.DataFrame, blind_baseline: BlindBaseline | None
) -> dict[str, Any]:
    ablated = with_ablation(own, "shuffled")
    base = scores_by(same, "dataset")
    with_image = scores_by(ablated, "dataset")
    unseen = scores_by(without_image(ablated, "shuffled"), "dataset")
    credit = None
    if blind_baseline:
        per_question = own.index.to_series().map(blind_baseline.rules[RULES[0]].credit)
        credit = per_question.groupby(own["dataset"]).mean()
    return {
        name: {
            "n": own_score.n,
            "accuracy": own_score.accuracy,
            "base": base[name].accuracy,
            "blind_baseline": None if credit is None else float(credit[name]),
            "visual_gain": (
                (with_image[name].correct - unseen[name].correct) / with_image[name].n
                if name in with_image
                else None
            ),
        }
        for name, own_score in scores_by(own, "dataset").items()
    }


def _compare_methods(
    checkpoints: Mapping[str, dict[str, Any]],
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    interval: Interval,
) -> None:
    """Add GRPO's advantage over another method in the same cell, on the same questions."""
    by_grpo = {
        (target.axis, target.cell): name
        for name, target in targets.items()
        if target.method == "grpo"
    }
    for name, target in targets.items():
        rival = by_grpo.get((target.axis, target.cell))
        if rival is None or rival == name:
            continue
        grpo = own_questions(predictions[rival], target)
        other = own_questions(predictions[name], target)
        difference = grpo["correct"].to_numpy(int) - other["correct"].to_numpy(int)
        low, high = interval(difference, grpo["image"])
        checkpoints[name]["in_domain"]["grpo"] = {
            "checkpoint": rival,
            "gain": float(difference.mean()),
            "low": low,
            "high": high,
        }


def _results(rows: pd.DataFrame, axis: str, axes: Axes) -> dict[str, Any]:
    """One checkpoint, or the base, on all test questions of one axis."""
    rows = tested(rows, axis)
    modalities = scores_by(rows, "modality", axes["modality"])
    types = scores_by(rows, "question_type", axes["task"])
    ablated = with_ablation(rows, "shuffled")
    with_image = score(ablated)
    unseen = score(without_image(ablated, "shuffled"))
    return {
        "n": len(rows),
        "micro": score(rows).accuracy,
        "macro": macro(modalities if axis == "modality" else types),
        "visual_gain": (
            (with_image.correct - unseen.correct) / with_image.n if with_image.n else None
        ),
        "format_rate": float(rows["answer"].notna().mean()),
        "answers": {
            **{form: int((rows["answer_form"] == form).sum()) for form in get_args(AnswerForm)},
            "in markup": int(rows["answer_in_markup"].eq(other=True).sum()),
            "unreadable": int(rows["answer"].isna().sum()),
        },
        "completion_tokens": float(rows["completion_tokens"].mean()),
        "by_modality": _cells(modalities),
        "by_question_type": _cells(types),
    }


def _cells(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: {"accuracy": cell.accuracy, "n": cell.n} for name, cell in scores.items()}


def _rounded(value: Any, key: str = "") -> Any:
    """Round floats (NumPy's included) to `DIGITS` decimals, p values to three significant digits.

    -0.0 becomes 0.0.
    """
    if isinstance(value, dict):
        return {name: _rounded(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.3g}") if key in P_VALUES else round(float(value), DIGITS) + 0.0
