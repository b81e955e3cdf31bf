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
_MARGIN: Final = 0.05
"""Half of a gain's interval beyond which a test is called small."""
_FEW_IMAGES: Final = 20
"""Images below which resampling them understates the uncertainty."""
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


def small_tests(checkpoints: Mapping[str, Any]) -> str:
    """Sentences on what tests of this size leave open; empty if all gains are known well enough."""
    margins = {
        name: (entry["in_domain"]["high"] - entry["in_domain"]["low"]) / 2
        for name, entry in checkpoints.items()
    }
    wide = [name for name, margin in margins.items() if margin > _MARGIN]
    if not wide:
        return ""
    widest = max(wide, key=margins.__getitem__)
    own = checkpoints[widest]["in_domain"]
    text = (
        f"For {len(wide)} of {len(margins)} checkpoints the 95% interval of the gain is wider than"
        f" \N{PLUS-MINUS SIGN}{100 * _MARGIN:.0f} points, up to"
        f" \N{PLUS-MINUS SIGN}{100 * margins[widest]:.1f} ({widest}, {own['n']} questions about"
        f" {own['images']} images): a smaller gain or loss is neither shown nor excluded."
    )
    few = {
        name: entry["in_domain"]["images"]
        for name, entry in checkpoints.items()
        if entry["in_domain"]["images"] < _FEW_IMAGES
    }
    if few:
        names = ", ".join(f"{name} {count}" for name, count in few.items())
        text += (
            f" Where images are few ({names}), even these intervals are too narrow, as they"
            " resample images."
        )
    return text


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
