"""The headline says what the intervals support, and nothing beyond."""

from __future__ import annotations

from typing import Any

import pytest

from stages.reporting.headline import Verdict, conclusion, verdict


def summary(
    gain: list[float] | None, visual: list[float] | None, indicators: int = 0
) -> dict[str, Any]:
    return {
        "checkpoints": 13,
        "in_domain_gain": None if gain is None else sum(gain) / 2,
        "visual_gain": None if visual is None else sum(visual) / 2,
        "intervals": {"in_domain_gain": gain, "visual_gain": visual},
        "reward_hacking_indicators": indicators,
    }


@pytest.mark.parametrize(
    ("gain", "visual", "expected"),
    [
        (None, None, "gain unknown"),
        ([-0.01, 0.09], [0.1, 0.2], "no gain shown"),
        ([0.0, 0.09], [0.1, 0.2], "no gain shown"),
        ([-0.09, -0.01], [0.1, 0.2], "a loss"),
        ([0.01, 0.09], None, "a gain; whether the answers need the image is unknown"),
        ([0.01, 0.09], [-0.01, 0.01], "a gain, but no need of the image shown"),
        ([0.01, 0.09], [-0.2, -0.1], "a gain, but no need of the image shown"),
        ([0.01, 0.09], [0.0, 0.1], "a gain, but no need of the image shown"),
        ([0.01, 0.09], [0.01, 0.1], "a gain, and the answers need the image"),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    gain: list[float] | None, visual: list[float] | None, expected: Verdict
) -> None:
    assert verdict(summary(gain, visual)) == expected


def test_the_conclusion_has_the_numbers_and_the_signs_of_reward_hacking() -> None:
    assert conclusion(summary([0.01, 0.07], [-0.02, 0.0], indicators=13)) == (
        "13 checkpoints: a gain, but no need of the image shown; +4.0 points over the base [+1.0"
        " to +7.0]; -1.0 points over another image instead of the real one [-2.0 to +0.0]; 13"
        " indicators of reward hacking."
    )
    assert conclusion(summary(None, None)) == "13 checkpoints: gain unknown."
