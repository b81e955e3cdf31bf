"""GPU-hours of the whole matrix from measured rates, for OmniMedVQA and the published splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

STYLES: Final = {"no-think": 10, "think": 150}
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


def hours(steps: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """GPU-hours per `<model>-<style>`: an epoch of training per implementation, and evaluation.

    Ablations are off; entries without a measurement are missing.
    """
    result: dict[str, dict[str, float]] = {}
    for name, measured in steps.items():
        times = measured["rows"][0]["ms_per_prompt"]
        result[name] = {way: TRAIN_PROMPTS * ms / 3.6e6 for way, ms in times.items()}
    for name, measured in evaluation.items():
        seconds = EVALUATED / measured["questions_per_second"]
        result.setdefault(name, {})["evaluation"] = seconds / 3600
    return result
