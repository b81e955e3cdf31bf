"""All numbers of the report, from predictions and blind baselines: plain, rounded values.

What is not known is None and never 0: a blind baseline that was not given, an image that was not
exchanged, a cell without questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
import pandas as pd

from stages.core.errors import InputError
from stages.predictions.schema import ABLATIONS
from stages.prompts.styles import Style
from stages.scoring.baselines import score_every_way
from stages.scoring.blind_baseline import RULES, BlindBaseline
from stages.scoring.hacking import detect_reward_hacking
from stages.scoring.statistics import (
    bootstrap_cells,
    cluster_interval,
    holm,
    mcnemar,
    percentiles,
    wilson_interval,
)
from stages.scoring.tables import (
    Score,
    Target,
    in_domain,
    macro,
    mean_of_all,
    score,
    scores_by,
    tested,
    with_ablation,
    without_image,
)
from stages.taxonomy import AXES

DIGITS: Final = 4
P_VALUES: Final = ("p", "p_holm")
"""Keys of p values, of which the leading digits count, not the decimals."""

Interval = Callable[[Any, Any], tuple[float, float]]
"""Values and their clusters, one a question -> the 95% interval of their mean."""
BlindBaselines = Mapping[tuple[str, str], BlindBaseline]
"""(axis, cell) -> its blind baseline."""


def compute_metrics(
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    samples: int,
    seed: int,
    *,
    blind_baselines: BlindBaselines | None = None,
    style: Style = "no-think",
) -> dict[str, Any]:
    """Summary, base and checkpoints: accuracies, counts, gains with intervals.

    `predictions` holds a checked table for "base" and for each checkpoint in `targets`; `samples`
    and `seed` are those of the bootstrap, which draws images; `style` is that of the prompts. The
    base has results on the tests of both axes, a checkpoint on those of its own. The summary is
    over the checkpoints trained with GRPO, if there are any: p values are adjusted for all.
    InputError if a blind baseline is of other questions than were answered.
    """
    base, blind_baselines = predictions["base"], blind_baselines or {}
    interval = partial(cluster_interval, samples=samples, seed=seed)
    checkpoints = {}
    for name, target in targets.items():
        blind_baseline = blind_baselines.get((target.axis, target.cell))
        own = _in_domain(predictions[name], base, target, blind_baseline, interval)
        indicators = [
            asdict(indicator)
            for indicator in detect_reward_hacking(
                tested(predictions[name], target.axis), tested(base, target.axis), style
            )
        ]
        checkpoints[name] = {
            **asdict(target),
            "in_domain": own,
            **_results(predictions[name], target.axis),
            "hacking": indicators,
        }
    spread = _macro_intervals(predictions, targets, blind_baselines, samples, seed)
    for name, p in holm(
        {name: entry["in_domain"]["p"] for name, entry in checkpoints.items()}
    ).items():
        checkpoints[name]["in_domain"]["p_holm"] = p
    _compare_methods(checkpoints, predictions, targets, interval)
    axes = {target.axis for target in targets.values()}
    metrics: dict[str, Any] = _rounded(
        {
            "summary": {**_summary(checkpoints, base), "intervals": spread},
            "base": {axis: _results(base, axis) for axis in AXES if axis in axes},
            "checkpoints": checkpoints,
        }
    )
    return metrics


def _summary(checkpoints: Mapping[str, dict[str, Any]], base: pd.DataFrame) -> dict[str, Any]:
    trained = [entry for entry in checkpoints.values() if entry["method"] == "grpo"] or list(
        checkpoints.values()
    )
    own = [entry["in_domain"] for entry in trained]
    means = {
        name: mean_of_all([entry[name] for entry in own])
        for name in ("base", "accuracy", "gain", "chance")
    }
    return {
        "checkpoints": len(own),
        "base_micro": score(base).accuracy,
        "in_domain_base": means["base"],
        "in_domain": means["accuracy"],
        "in_domain_gain": means["gain"],
        "chance": means["chance"],
        "beat_base": sum(entry["gain"] > 0 for entry in own),
        "above_zero": sum(entry["low"] > 0 for entry in own),
        "below_zero": sum(entry["high"] < 0 for entry in own),
        "significant": sum(entry["p_holm"] <= 0.05 for entry in own),
        "blind_baseline": mean_of_all(
            [entry["blind_baseline"] and entry["blind_baseline"]["accuracy"] for entry in own]
        ),
        "above_blind_baseline": (
            sum(entry["blind_baseline"]["above_low"] > 0 for entry in own)
            if all(entry["blind_baseline"] for entry in own)
            else None
        ),
        "visual_gain": mean_of_all([_gain(entry["visual"]) for entry in own]),
        "base_visual_gain": mean_of_all([_gain(entry["base_visual"]) for entry in own]),
        "sees": (
            sum(entry["visual"]["shuffled"]["low"] > 0 for entry in own)
            if all(entry["visual"]["shuffled"] for entry in own)
            else None
        ),
        "reward_hacking_indicators": sum(
            indicator["triggered"]
            for indicator in chain.from_iterable(entry["hacking"] for entry in trained)
        ),
    }


def _macro_intervals(
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    blind_baselines: BlindBaselines,
    samples: int,
    seed: int,
) -> dict[str, list[float] | None]:
    """95% intervals of macro means, images resampled jointly; None where a mean is missing."""
    trained = {name: target for name, target in targets.items() if target.method == "grpo"} or dict(
        targets
    )
    base = predictions["base"].set_index("question_id")
    cells: dict[str, list[tuple[Any, Any]]] = {
        "in_domain": [],
        "in_domain_gain": [],
        "above_blind_baseline": [],
        "visual_gain": [],
    }
    for name, target in trained.items():
        own = (
            in_domain(predictions[name], target.axis, target.cell)
            .set_index("question_id")
            .sort_index()
        )
        right, images = own["correct"].to_numpy(float), own["image"]
        cells["in_domain"].append((right, images))
        cells["in_domain_gain"].append(
            (right - base.loc[own.index, "correct"].to_numpy(float), images)
        )
        if blind_baseline := blind_baselines.get((target.axis, target.cell)):
            cells["above_blind_baseline"].append(
                (
                    right - own.index.map(blind_baseline.rules[RULES[0]].credit).to_numpy(float),
                    images,
                )
            )
        ablated = with_ablation(own, "shuffled")
        if len(ablated):
            cells["visual_gain"].append(
                (
                    ablated["correct"].to_numpy(float)
                    - ablated["shuffled_correct"].to_numpy(float),
                    ablated["image"],
                )
            )
    whole = {name: values for name, values in cells.items() if len(values) == len(trained)}
    draws = bootstrap_cells(list(chain.from_iterable(whole.values())), samples, seed)
    means = dict(
        zip(
            whole,
            np.nanmean(draws.reshape(samples, len(whole), len(trained)), axis=2).T,
            strict=True,
        )
    )
    return {name: list(percentiles(means[name])) if name in means else None for name in cells}


def _gain(visual: Mapping[str, dict[str, Any] | None]) -> float | None:
    exchanged = visual["shuffled"]
    return exchanged["gain"] if exchanged else None


def _in_domain(
    rows: pd.DataFrame,
    base: pd.DataFrame,
    target: Target,
    blind_baseline: BlindBaseline | None,
    interval: Interval,
) -> dict[str, Any]:
    """A checkpoint and the base on the in-domain test questions of the checkpoint."""
    own = (
        in_domain(rows, target.axis, target.cell).set_index("question_id", drop=False).sort_index()
    )
    same = base.set_index("question_id", drop=False).loc[own.index]
    after, before = own["correct"].to_numpy(bool), same["correct"].to_numpy(bool)
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
            _over_blind_baseline(own, blind_baseline, interval) if blind_baseline else None
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


def _over_blind_baseline(
    own: pd.DataFrame, blind_baseline: BlindBaseline, interval: Interval
) -> dict[str, Any]:
    """The split's blind baseline under both rules, and the accuracy's excess over the first."""
    rule = blind_baseline.rules[RULES[0]]
    if own.index.symmetric_difference(pd.Index(rule.credit)).size:
        raise InputError(
            f"the blind baseline of {blind_baseline.axis}/{blind_baseline.split}"
            f" ({blind_baseline.kind}) is of other questions than the predictions are: the splits"
            " have changed since; run `dvc repro prior`, and evaluate on the same splits"
        )
    over = own["correct"].to_numpy(float) - own.index.map(rule.credit).to_numpy(float)
    low, high = interval(over.round(9), own["image"])
    return {
        "accuracy": rule.accuracy,
        "low": rule.low,
        "high": rule.high,
        "normalised": blind_baseline.rules[RULES[1]].accuracy,
        "pooled": rule.pooled,
        "above": float(over.mean()),
        "above_low": low,
        "above_high": high,
    }


def _visual(own: pd.DataFrame, variant: str, interval: Interval) -> dict[str, Any] | None:
    """Visual gain: accuracy with less without the image, on questions asked both ways.

    Else None.
    """
    ablated = with_ablation(own, variant)
    if ablated.empty:
        return None
    with_image, unseen = score(ablated), score(without_image(ablated, variant))
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
    chosen = own.loc[ids]
    return {
        "n": len(ids),
        **_with_interval(score(chosen)),
        "base": score(same.loc[ids]).accuracy,
        "chance": float(np.mean(1 / chosen["n_options"])) if ids else None,
    }


def _by_dataset(
    own: pd.DataFrame, same: pd.DataFrame, blind_baseline: BlindBaseline | None
) -> dict[str, Any]:
    ablated = with_ablation(own, "shuffled")
    scores, before = scores_by(own, "dataset"), scores_by(same, "dataset")
    with_image, unseen = (
        scores_by(ablated, "dataset"),
        scores_by(without_image(ablated, "shuffled"), "dataset"),
    )
    credit = (
        own.index.to_series()
        .map(blind_baseline.rules[RULES[0]].credit)
        .groupby(own["dataset"])
        .mean()
        if blind_baseline
        else None
    )
    return {
        name: {
            "n": each_score.n,
            "accuracy": each_score.accuracy,
            "base": before[name].accuracy,
            "blind_baseline": None if credit is None else float(credit[name]),
            "visual_gain": (
                (with_image[name].correct - unseen[name].correct) / with_image[name].n
                if name in with_image
                else None
            ),
        }
        for name, each_score in scores.items()
    }


def _compare_methods(
    checkpoints: Mapping[str, dict[str, Any]],
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    interval: Interval,
) -> None:
    """GRPO's advantage over another method in the same cell, on the same questions."""
    by_grpo = {
        (target.axis, target.cell): name
        for name, target in targets.items()
        if target.method == "grpo"
    }
    for name, target in targets.items():
        rival = by_grpo.get((target.axis, target.cell))
        if rival is None or rival == name:
            continue
        one, other = (
            in_domain(predictions[each], target.axis, target.cell)
            .set_index("question_id")
            .sort_index()
            for each in (rival, name)
        )
        difference = one["correct"].to_numpy(int) - other["correct"].to_numpy(int)
        low, high = interval(difference, one["image"])
        checkpoints[name]["in_domain"]["grpo"] = {
            "checkpoint": rival,
            "gain": float(difference.mean()),
            "low": low,
            "high": high,
        }


def _results(rows: pd.DataFrame, axis: str) -> dict[str, Any]:
    """One checkpoint, or the base, on all test questions of one axis."""
    rows = tested(rows, axis)
    modalities = scores_by(rows, "modality", AXES["modality"])
    types = scores_by(rows, "question_type", AXES["task"])
    ablated = with_ablation(rows, "shuffled")
    with_image, unseen = score(ablated), score(without_image(ablated, "shuffled"))
    return {
        "n": len(rows),
        "micro": score(rows).accuracy,
        "macro": macro(modalities if axis == "modality" else types),
        "visual_gain": (with_image.correct - unseen.correct) / with_image.n
        if with_image.n
        else None,
        "format_rate": float(rows["answer"].notna().mean()),
        "completion_tokens": float(rows["completion_tokens"].mean()),
        "by_modality": _cells(modalities),
        "by_question_type": _cells(types),
    }


def _cells(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: {"accuracy": cell.accuracy, "n": cell.n} for name, cell in scores.items()}


def _rounded(value: Any, key: str = "") -> Any:
    """Floats rounded to `DIGITS` digits (NumPy's included), p values to three significant digits.

    -0.0 becomes 0.0.
    """
    if isinstance(value, dict):
        return {name: _rounded(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.3g}") if key in P_VALUES else round(float(value), DIGITS) + 0.0
