"""Colour scales for accuracies and for differences (diverging), light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Final

from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb

from stages.scoring.tables import CrossTable

LIGHT: Final = LinearSegmentedColormap.from_list(
    "accuracy", ["#f3efe4", "#c9d9d3", "#7fb0b4", "#3b7c94", "#1d4a6b"]
)
DARK: Final = LinearSegmentedColormap.from_list(
    "accuracy-dark", ["#23282c", "#27424f", "#2f6a80", "#5a9fae", "#c3e0d8"]
)
DIVERGING: Final = LinearSegmentedColormap.from_list(
    "difference", ["#8f3a1d", "#d98f6a", "#f3efe4", "#7fb0b4", "#1d5a7d"]
)
DIVERGING_DARK: Final = LinearSegmentedColormap.from_list(
    "difference-dark", ["#f0a080", "#8a4a33", "#23282c", "#2f6a80", "#9fd0dc"]
)


def max_abs(tables: Iterable[CrossTable]) -> float:
    """Largest absolute difference in these tables, rounded up to a tenth: limit of the scale."""
    cells = chain.from_iterable(table.numbers() for table in tables)
    return math.ceil(max([0.1, *map(abs, cells)]) * 10) / 10


def bounds(tables: Iterable[CrossTable]) -> tuple[float, float]:
    """The tenths that enclose all accuracies in these tables: the ends of the scale."""
    present = list(chain.from_iterable(table.numbers() for table in tables))
    if not present:
        return (0.0, 1.0)
    low = math.floor(min(present) * 10) / 10
    high = math.ceil(max(present) * 10) / 10
    return (low, high) if low < high else (max(low - 0.1, 0.0), min(high + 0.1, 1.0))


def shades(scale: Colormap, steps: int) -> list[tuple[str, str]]:
    """`steps` colours from low to high, each with its more readable text colour (WCAG 2.2).

    The contrast is always at least 4.58, above the 4.5 that WCAG requires.
    """
    colours = [to_hex(scale(step / (steps - 1))) for step in range(steps)]
    return [(colour, text_color(colour)) for colour in colours]


def text_color(colour: str) -> str:
    """Black or white, whichever contrasts more with the background `colour`."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in to_rgb(colour)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"
