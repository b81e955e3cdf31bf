"""Geometry of the page's small charts: training curves, sparklines, intervals (no colours)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd

POINTS: Final = 120
"""Maximum points per line; longer logs are drawn as means over equal blocks of steps."""
REWARDS: Final = ("reward_format", "reward_accuracy", "reward")
"""The lines of a reward panel, back to front."""


@dataclass(frozen=True)
class LinearScale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        return round(
            self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1
        )

    def ticks(self, count: int) -> list[float]:
        """About `count` round values within the scale."""
        from matplotlib.ticker import MaxNLocator  # not before something is drawn

        ticks = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(tick) for tick in ticks if self.low <= tick <= self.high]


def thinned(log: pd.DataFrame) -> pd.DataFrame:
    """A log of at most `POINTS` rows, each the mean of a block of steps."""
    if len(log) <= POINTS:
        return log
    return log.groupby(np.arange(len(log)) * POINTS // len(log)).mean(numeric_only=True)


def ends(values: pd.Series[float]) -> tuple[float, float]:
    """Means over the first and the last tenth of the logged values, at least one step each."""
    values = values.dropna()
    tenth = max(1, len(values) // 10)
    return float(values.iloc[:tenth].mean()), float(values.iloc[-tenth:].mean())


def reward_panels(
    logs: Mapping[str, pd.DataFrame], width: int = 180, height: int = 110
) -> dict[str, Any]:
    """Small multiples of total, accuracy and format reward over steps, one panel per checkpoint."""
    columns = [log[name] for log, name in product(logs.values(), REWARDS)]
    top = max(float(column.max()) for column in columns if column.notna().any())
    y_scale = LinearScale(0.0, math.ceil(top) or 1, height - 16, 6)
    panels = []
    for name, log in logs.items():
        x_scale = _steps(log, 20, width - 4)
        panels.append(
            {
                "checkpoint": name,
                "lines": {
                    column: _line(thinned(log), column, x_scale, y_scale) for column in REWARDS
                },
                "ends": ends(log["reward"]),
                "steps": (int(log["step"].iloc[0]), int(log["step"].iloc[-1])),
            }
        )
    return {
        "width": width,
        "height": height,
        "ticks": [(y_scale(tick), f"{tick:g}") for tick in y_scale.ticks(3)],
        "panels": panels,
    }


def sparklines(
    logs: Mapping[str, pd.DataFrame], column: str, width: int = 120, height: int = 26
) -> dict[str, dict[str, Any] | None]:
    """One line per checkpoint on a common scale from zero; None if the quantity is not logged."""
    top = max(
        (float(log[column].max()) for log in logs.values() if log[column].notna().any()),
        default=1.0,
    )
    y_scale = LinearScale(0.0, top or 1.0, height - 2, 2)
    lines: dict[str, dict[str, Any] | None] = {}
    for name, log in logs.items():
        lines[name] = None
        if log[column].notna().any():
            line = _line(thinned(log), column, _steps(log, 1, width - 1), y_scale)
            lines[name] = {"line": line, "ends": ends(log[column])}
    return lines


def interval_scale(entries: list[dict[str, Any]]) -> LinearScale:
    """A common scale for all gains and intervals, including zero, of 100 units."""
    low = min(0.0, *(entry["low"] for entry in entries))
    high = max(0.0, *(entry["high"] for entry in entries))
    margin = 0.04 * (high - low) or 0.01
    return LinearScale(low - margin, high + margin, 0, 100)


def _steps(log: pd.DataFrame, start: float, end: float) -> LinearScale:
    first = float(log["step"].iloc[0])
    last = float(log["step"].iloc[-1])
    return LinearScale(first, last if last > first else first + 1, start, end)


def _line(log: pd.DataFrame, column: str, x_scale: LinearScale, y_scale: LinearScale) -> str:
    """The `points` attribute of an SVG polyline, without steps that have no value."""
    return " ".join(
        f"{x_scale(step)},{y_scale(value)}"
        for step, value in zip(log["step"], log[column], strict=True)
        if not math.isnan(value)
    )
