"""The page: one HTML file with everything in it, for a desk, a phone and paper, in light and dark.

The words and the structure are in page.html.j2, the looks in page.css; here the numbers are put in order for them.
Everything that a model or a data set wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.reporting.curves import interval_scale, reward_panels, sparklines
from stages.reporting.evidence import Evidence, count_reasons
from stages.reporting.labels import label, percent, signed
from stages.reporting.palette import DARK, LIGHT, bounds, shades
from stages.scoring.tables import CrossTable

SHADES: Final = 24
LONGEST: Final = 500
"""Characters of a completion that are shown."""
REASONS: Final = 20
"""Reasons for refusals that are listed."""
SPARKS: Final = {
    "kl": ("KL to the base", "{:.3f}"),
    "completion_length": ("Completion length, tokens", "{:.1f}"),
    "frac_reward_zero_std": ("Groups without a signal", "{:.0%}"),
}
"""Column of a training log -> what its sparklines show, and how a value of it is written."""


def render_page(evidence: Evidence) -> str:
    """The report as one HTML document that refers to nothing outside itself."""
    metrics, names = evidence.metrics, evidence.metrics["checkpoints"]
    scaled = bounds([*evidence.crosses.values(), *evidence.slices.values()])
    scale = interval_scale([entry["in_domain"] for entry in names.values()])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "label": label,
        "percent": _percent,
        "signed": _signed,
        "thousands": lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
        "clip": _clip,
        "flat": lambda tree: list(_flat(tree)),
    }
    return environment.get_template("page.html.j2").render(
        evidence=evidence,
        summary=metrics["summary"],
        base=metrics["base"],
        checkpoints=names,
        by_axis={axis: {name: entry for name, entry in names.items() if entry["axis"] == axis} for axis in metrics["base"]},
        chance=float(np.mean([entry["in_domain"]["chance"] for entry in names.values()])),
        scale=scale,
        ticks=scale.ticks(5),
        bounds=scaled,
        shades={"light": shades(LIGHT, SHADES), "dark": shades(DARK, SHADES)},
        crosses={axis: _heat(table, scaled) for axis, table in evidence.crosses.items()},
        slices={axis: _heat(table, scaled) for axis, table in evidence.slices.items()},
        rewards=reward_panels(evidence.logs),
        sparks=[{"title": title, "format": form, "lines": sparklines(evidence.logs, column)} for column, (title, form) in SPARKS.items()],
        reasons=count_reasons(evidence.quarantine),
        most_reasons=REASONS,
    )


def _heat(table: CrossTable, scaled: tuple[float, float]) -> dict[str, Any]:
    """Heads and rows of a table of coloured cells; `gain` is the difference to the base in the same column."""
    low, high = scaled
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, values in table.accuracy.items():
        rows[name] = []
        for cell, value in values.items():
            base = table.accuracy["base"][cell]
            shade = None if value is None else round((value - low) / (high - low) * (SHADES - 1))
            gain = None if name == "base" or value is None or base is None else value - base
            rows[name].append({"value": value, "shade": shade, "gain": gain, "own": name == cell, "macro": cell == "macro"})
    return {"questions": table.questions, "rows": rows}


def _percent(share: float | None, digits: int = 1) -> str:
    return percent(share, digits).replace("-", "\N{EN DASH}")


def _signed(share: float, digits: int = 1) -> str:
    return signed(share, digits).replace("-", "\N{MINUS SIGN}")


def _clip(text: str) -> str:
    """A long text cut, and how much of it is missing."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys and values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
