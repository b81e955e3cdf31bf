"""Stand-alone figures as PNG: heatmaps and training curves.

Equal numbers and provenance give equal bytes. Each PNG carries its provenance as JSON in a text
field, because figures are often copied out of their folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stages.reporting.labels import label, percent, signed
from stages.reporting.palette import DIVERGING, LIGHT, bounds, max_abs, text_color
from stages.scoring.tables import CrossTable

CURVES: Final = {
    "reward": "Reward",
    "reward_accuracy": "Accuracy reward",
    "reward_format": "Format reward",
    "kl": "KL to the base",
    "completion_length": "Completion length (tokens)",
}
"""Column of a training log -> title of its panel."""

_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a867c",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": "#55524a",
    "ytick.color": "#55524a",
    "axes.labelcolor": "#55524a",
    "figure.dpi": 150,
}


def save_heatmap(path: Path, table: CrossTable, title: str, provenance: Mapping[str, Any]) -> None:
    """Draw a table as a PNG heatmap.

    A line separates the base row, in-domain cells are outlined, missing cells are blank.
    """
    if table.measure == "accuracy":
        low, high = bounds([table])
    else:
        high = max_abs([table])
        low = -high
    scale = LIGHT if table.measure == "accuracy" else DIVERGING
    text = percent if table.measure == "accuracy" else signed
    cells = next(iter(table.values.values()))
    base_gap = 0.15 * ("base" in table.values)
    with mpl.rc_context(_STYLE):
        figure = Figure(
            figsize=(1.8 + 0.95 * len(cells), 1.7 + 0.46 * len(table.values)), layout="constrained"
        )
        axes = figure.add_subplot()
        axes.set_title(title, pad=10)
        for row, (name, values) in enumerate(table.values.items()):
            for column, (cell, value) in enumerate(values.items()):
                # a gap behind the base row and before the macro column
                x = column + 0.15 * (cell == "macro")
                y = row + base_gap * (row > 0)
                shade = None if value is None else to_hex(scale((value - low) / (high - low)))
                _cell(axes, x, y, text(value), shade, outlined=table.own.get(name) == cell)
        heads = [
            f"{label(cell)}\nn={table.questions[cell]}" if cell in table.questions else "Macro"
            for cell in cells
        ]
        axes.set_xticks(
            [*np.arange(len(heads) - 1) + 0.5, len(heads) - 0.35],
            [head.replace(" ", "\n", 2) for head in heads],
        )
        axes.set_yticks(
            [0.5, *np.arange(1, len(table.values)) + 0.5 + base_gap],
            [label(name) for name in table.values],
        )
        axes.set(
            xlim=(-0.05, len(heads) + 0.2),
            ylim=(len(table.values) + 0.2, -0.05),
            xlabel="tested on",
            ylabel="trained on",
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _save(figure, path, provenance)


def save_training(
    path: Path,
    logs: Mapping[str, pd.DataFrame],
    axes: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> None:
    """Draw training curves as a PNG: one row per axis, one panel per quantity.

    `axes`: checkpoint -> its axis; each checkpoint is one line.
    """
    axis_names = list(dict.fromkeys(axes.values()))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * len(CURVES), 3.1 * len(axis_names)), layout="constrained")
        grid = figure.subplots(len(axis_names), len(CURVES), squeeze=False, sharey="col")
        for row, axis_name in enumerate(axis_names):
            names = [name for name, own in axes.items() if own == axis_name]
            colours = mpl.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
            for panel, (column, title) in zip(grid[row], CURVES.items(), strict=True):
                for name, colour in zip(names, colours, strict=True):
                    panel.plot(
                        logs[name]["step"],
                        logs[name][column],
                        color=colour,
                        linewidth=1.2,
                        label=label(name),
                    )
                panel.set(title=title, xlabel="step")
                panel.grid(axis="y", color="#e6e2d8", linewidth=0.7)
            # beside the last panel, where it covers no curve
            grid[row][-1].legend(
                frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8
            )
        # the rows share their scales, so the limit is set after all curves are drawn
        for panel in grid[0]:
            panel.set_ylim(bottom=0)
        _save(figure, path, provenance)


def _cell(axes: Axes, x: float, y: float, text: str, shade: str | None, *, outlined: bool) -> None:
    colour = shade or "#ffffff"
    edge = "#1c1b19" if outlined else "none"
    axes.add_patch(
        Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, facecolor=colour, edgecolor=edge, linewidth=1.6)
    )
    axes.text(
        x + 0.5,
        y + 0.5,
        text,
        ha="center",
        va="center",
        color=text_color(colour),
        fontweight="bold" if outlined else "normal",
    )


def _save(figure: Figure, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the PNG with the provenance instead of Matplotlib's own software field."""
    FigureCanvasAgg(figure)
    figure.savefig(
        path, format="png", metadata={"Software": None, "provenance": json.dumps(provenance)}
    )
