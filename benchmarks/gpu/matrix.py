"""GPU-hours of the whole matrix from measured rates, for OmniMedVQA and the published splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

STYLES: Final = {"no-think": 10, "think": 150}
"""Answer style -> tokens of a completion: an answer alone, and thoughts of the length Med-R1's have
before it.
"""
TRAIN_PROMPTS: Final = 142_668
"""Of the 13 published train splits, an epoch each: 71,334 by modality (one record has none), and as
many by question type.
"""
MODALITIES: Final = 8
TYPES: Final = 5
TEST_BY_MODALITY: Final = 17_662
TEST_BY_TYPE: Final = 17_919
"""Test questions of an axis: each of its checkpoints answers them all, and the base both axes'."""
EVALUATED: Final = (MODALITIES + 1) * TEST_BY_MODALITY + (TYPES + 1) * TEST_BY_TYPE


def hours(steps: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """GPU-hours per `<model>-<style>`: an epoch of training per method, and evaluation.

    Ablations are off. What was not measured is left out.
    """
    made: dict[str, dict[str, float]] = {}
    for name, measured in steps.items():
        made[name] = {
            way: TRAIN_PROMPTS * ms / 3.6e6
            for way, ms in measured["rows"][0]["ms_per_prompt"].items()
        }
    for name, measured in evaluation.items():
        made.setdefault(name, {})["evaluation"] = (
            EVALUATED / measured["questions_per_second"] / 3600
        )
    return made
