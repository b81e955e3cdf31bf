"""GPU-hours of the whole matrix from measured rates, for OmniMedVQA and the published splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stages.core.params import Params
from stages.profiles.times import COMPLETION_TOKENS

STYLES: Final = {style: COMPLETION_TOKENS[style] for style in ("no-think", "think")}
"""Answer style -> tokens per completion: an answer alone, or after thoughts of Med-R1's length."""
TRAIN_PROMPTS: Final = 142_668
"""One epoch of each of the 13 published train splits: 71,334 by modality (one record has none), and
as many by question type.
"""
MODALITIES: Final = 8
TYPES: Final = 5
TEST_BY_MODALITY: Final = 17_662
TEST_BY_TYPE: Final = 17_919
"""Test questions per axis: its checkpoints answer all of them, and the base those of both axes."""
EVALUATED: Final = (MODALITIES + 1) * TEST_BY_MODALITY + (TYPES + 1) * TEST_BY_TYPE


def hours(
    steps: Mapping[str, Any], evaluation: Mapping[str, Any], profiles: Mapping[str, Params]
) -> dict[str, dict[str, float]]:
    """GPU-hours per `<model>-<style>`: training by each implementation, and evaluation.

    `profiles`: settings by name, for the epochs and ablations. Steps and answers alone, without
    starts and saved states; entries without a measurement are missing.
    """
    result: dict[str, dict[str, float]] = {}
    for name, measured in steps.items():
        times = measured["rows"][0]["ms_per_prompt"]
        prompts = TRAIN_PROMPTS * profiles[measured["profile"]].grpo.num_train_epochs
        result[name] = {way: prompts * ms / 3.6e6 for way, ms in times.items()}
    for name, measured in evaluation.items():
        answers = EVALUATED * (3 if profiles[measured["profile"]].evaluate.ablations else 1)
        seconds = answers / measured["questions_per_second"]
        result.setdefault(name, {})["evaluation"] = seconds / 3600
    return result


def pass_seconds(steps: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Model -> profile -> seconds of a pass that samples one token of each completion.

    From rollouts of both styles without drafts: what each further token takes.
    """
    rollouts: dict[tuple[str, str], dict[int, float]] = {}
    for measured in steps.values():
        row = measured["rows"][0]
        if "shared" not in row["seconds"]:  # it did not fit
            continue
        passes = row["seconds"]["shared"]["rollout"] / measured["passes"]
        key = (row["model"], measured["profile"])
        rollouts.setdefault(key, {})[row["completion_tokens"]] = passes
    result: dict[str, dict[str, float]] = {}
    for (model, profile), seconds in rollouts.items():
        short, long = min(seconds), max(seconds)
        if short < long:
            by_profile = result.setdefault(model, {})
            by_profile[profile] = (seconds[long] - seconds[short]) / (long - short)
    return result
