"""The figures that stand alone, as PNG: heatmaps and the training curves.

Same numbers and provenance, same bytes.

A figure is often copied without the folder it was made in; its provenance goes along, as JSON in a
text field of the PNG.
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
"""Column of a training log -> title of its panels."""

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

    Base row set apart, in-domain cells outlined, missing cells blank.
    """
    level = table.measure == "accuracy"
    low, high = bounds([table]) if level else (-max_abs([table]), max_abs([table]))
    scale, write = (LIGHT, percent) if level else (DIVERGING, signed)
    cells = next(iter(table.values.values()))
    apart = 0.15 * ("base" in table.values)
    with mpl.rc_context(_STYLE):
        figure = Figure(
            figsize=(1.8 + 0.95 * len(cells), 1.7 + 0.46 * len(table.values)), layout="constrained"
        )
        axes = figure.add_subplot()
        axes.set_title(title, pad=10)
        for row, (name, values) in enumerate(table.values.items()):
            for column, (cell, value) in enumerate(values.items()):
                # a gap behind the base row and before the macro column
                x, y = column + 0.15 * (cell == "macro"), row + apart * (row > 0)
                shade = None if value is None else to_hex(scale((value - low) / (high - low)))
                _cell(axes, x, y, write(value), shade, outlined=table.own.get(name) == cell)
        heads = [
            f"{label(cell)}\nn={table.questions[cell]}" if cell in table.questions else "Macro"
            for cell in cells
        ]
        axes.set_xticks(
            [*np.arange(len(heads) - 1) + 0.5, len(heads) - 0.35],
            [head.replace(" ", "\n", 2) for head in heads],
        )
        axes.set_yticks(
            [0.5, *np.arange(1, len(table.values)) + 0.5 + apart],
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
    """Draw training curves as a PNG.

    One row per axis, one panel per quantity, one line per checkpoint.
    """
    kinds = list(dict.fromkeys(axes.values()))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * len(CURVES), 3.1 * len(kinds)), layout="constrained")
        grid = figure.subplots(len(kinds), len(CURVES), squeeze=False, sharey="col")
        for row, kind in enumerate(kinds):
            names = [name for name, own in axes.items() if own == kind]
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
            # outside the last panel, where no curve can run
            grid[row][-1].legend(
                frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8
            )
        for panel in grid[0]:  # the rows share their scales, so that all curves are drawn by now
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
    """Write with the provenance in place of the line with which the library names itself."""
    FigureCanvasAgg(figure)
    figure.savefig(
        path, format="png", metadata={"Software": None, "provenance": json.dumps(provenance)}
    )
