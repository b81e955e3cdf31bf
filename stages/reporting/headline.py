"""What the intervals of a report support, in a few words: its headline and its last line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from stages.reporting.labels import signed

Verdict = Literal[
    "gain unknown",
    "no gain shown",
    "a loss",
    "a gain; whether the answers need the image is unknown",
    "a gain, but no need of the image shown",
    "a gain, and the answers need the image",
]
DISCLAIMER: Final = "Not a medical device, not for clinical use."


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """What the 95% intervals of mean in-domain gain and visual gain support.

    `summary` is that of metrics.json. Answers need the image if another one instead costs accuracy.
    How much of the gain comes from the image is not said: a base may have needed it as much.
    """
    gain = summary["intervals"]["in_domain_gain"]
    visual = summary["intervals"]["visual_gain"]
    if gain is None:
        return "gain unknown"
    low, high = gain
    if high < 0:
        return "a loss"
    if low <= 0:
        return "no gain shown"
    if visual is None:
        return "a gain; whether the answers need the image is unknown"
    return (
        "a gain, and the answers need the image"
        if visual[0] > 0
        else "a gain, but no need of the image shown"
    )


def conclusion(summary: Mapping[str, Any]) -> str:
    """The verdict with its numbers, in one sentence."""
    parts = [f"{summary['checkpoints']} checkpoints: {verdict(summary)}"]
    for key, what in (
        ("in_domain_gain", "over the base"),
        ("visual_gain", "over another image instead of the real one"),
    ):
        if (bounds := summary["intervals"][key]) is not None:
            low, high = map(signed, bounds)
            parts.append(f"{signed(summary[key])} points {what} [{low} to {high}]")
    if count := summary["reward_hacking_indicators"]:
        parts.append(f"{count} indicator{'s' * (count > 1)} of reward hacking")
    return f"{'; '.join(parts)}."
