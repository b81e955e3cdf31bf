"""The page: one HTML file with everything in it, for a desk, a phone and paper, in light and dark.

The words and the structure are in page.html.j2, the looks in page.css; here the numbers are put in
order for them. Everything that a model or a data set wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from stages.core.cards.templating import render_html
from stages.reporting import tables
from stages.reporting.curves import interval_scale, reward_panels, sparklines
from stages.reporting.evidence import Evidence, count_refusals, group_origins
from stages.reporting.labels import AXIS_LABELS, clip, label, percent, signed
from stages.reporting.palette import DARK, DIVERGING, DIVERGING_DARK, LIGHT, bounds, max_abs, shades
from stages.reporting.sheets import flat
from stages.scoring.published import HEADLINES, NO_THINK_MINUS_THINK, THIRD_PARTY
from stages.scoring.tables import CrossTable

SHADES: Final = 24
APART_SHADES: Final = 25
"""Odd, so that zero has a colour of its own."""


def render_page(evidence: Evidence, images: Mapping[str, str]) -> str:
    """Render the report as one self-contained HTML document; `images`: path -> data URL."""
    metrics, names = evidence.metrics, evidence.metrics["checkpoints"]
    crossed = evidence.tables.values()
    scaled = bounds([*(each.accuracy for each in crossed), *(each.slices for each in crossed)])
    apart = max_abs([*(each.visual_gain for each in crossed), *(each.to_base for each in crossed)])
    scale = interval_scale([entry["in_domain"] for entry in names.values()])
    filters = {
        "label": label,
        "percent": lambda share, digits=1: typeset(percent(share, digits)),
        "signed": lambda share, digits=1: typeset(signed(share, digits)),
        "thousands": thousands,
        "typeset": typeset,
        "heading": _heading,
        "clip": clip,
        "flat": lambda tree: list(flat(tree).items()),
    }
    return render_html(
        Path(__file__).with_name("page.html.j2"),
        filters,
        tables=tables,
        axis_labels=AXIS_LABELS,
        evidence=evidence,
        images=images,
        summary=metrics["summary"],
        base=metrics["base"],
        checkpoints=names,
        by_axis={
            axis: {name: entry for name, entry in names.items() if entry["axis"] == axis}
            for axis in metrics["base"]
        },
        chance=metrics["summary"]["chance"],
        scale=scale,
        ticks=scale.ticks(5),
        bounds=scaled,
        apart=apart,
        shades={"light": shades(LIGHT, SHADES), "dark": shades(DARK, SHADES)},
        shades_apart={
            "light": shades(DIVERGING, APART_SHADES),
            "dark": shades(DIVERGING_DARK, APART_SHADES),
        },
        accuracies={
            axis: _heat(by_column.accuracy, scaled, "s", SHADES)
            for axis, by_column in evidence.tables.items()
        },
        visuals={
            axis: _heat(by_column.visual_gain, (-apart, apart), "d", APART_SHADES)
            for axis, by_column in evidence.tables.items()
        },
        to_base={
            axis: _heat(by_column.to_base, (-apart, apart), "d", APART_SHADES)
            for axis, by_column in evidence.tables.items()
        },
        slices={
            axis: _heat(by_column.slices, scaled, "s", SHADES)
            for axis, by_column in evidence.tables.items()
        },
        rewards=reward_panels(evidence.logs) if evidence.logs else None,
        sparks=[
            {"title": title, "format": form, "lines": sparklines(evidence.logs, column)}
            for column, (title, form) in tables.SPARKS.items()
        ],
        refusals=count_refusals(evidence.quarantine),
        printed={"headlines": HEADLINES, "tables": NO_THINK_MINUS_THINK, "others": THIRD_PARTY},
        origins=group_origins(evidence.origins),
    )


def _heat(
    table: CrossTable, scaled: tuple[float, float], prefix: str, count: int
) -> dict[str, Any]:
    """Header and rows of a heatmap table; `shade`: a cell's colour class, None without a number."""
    low, high = scaled
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, values in table.values.items():
        rows[name] = []
        for cell, value in values.items():
            shade = (
                None
                if value is None
                else f"{prefix}{round((value - low) / (high - low) * (count - 1))}"
            )
            rows[name].append(
                {
                    "value": value,
                    "shade": shade,
                    "own": table.own.get(name) == cell,
                    "macro": cell == "macro",
                }
            )
    return {
        "questions": table.questions,
        "rows": rows,
        "there": table.there,
        "signed": table.measure != "accuracy",
    }


def _heading(words: str) -> str:
    """Words with a capital; symbols, n and p, stay as they are."""
    return words if words[1:2] in ("", " ") else words[0].upper() + words[1:]


def typeset(value: str | int | None) -> str:
    """A number as print has it: minus sign, grouped thousands, a dash where there is none."""
    if isinstance(value, int):
        return thousands(value)
    if value is None or value == "-":
        return "\N{EN DASH}"
    return value.replace("+-", "\N{PLUS-MINUS SIGN}").replace("-", "\N{MINUS SIGN}")


def thousands(number: int) -> str:
    """A count with its digits in threes."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
