"""Report page: one self-contained HTML file for screen, phone and print, in light and dark.

Text and structure are in page.html.j2, the style in page.css; this module prepares their values.
Text written by a model or a data set is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from stages.core.cards.templating import render_html
from stages.reporting import parts, tables
from stages.reporting.curves import interval_scale, reward_panels, sparklines
from stages.reporting.evidence import Evidence, count_refusals, group_origins
from stages.reporting.examples.gallery import strip
from stages.reporting.headline import DISCLAIMER, small_tests, verdict
from stages.reporting.labels import AXIS_LABELS, clip, label, percent, signed
from stages.reporting.palette import DARK, DIVERGING, DIVERGING_DARK, LIGHT, bounds, max_abs, shades
from stages.reporting.released import published_beside, released_sentence
from stages.reporting.sheets import flat
from stages.scoring.tables import CrossTable

SHADES: Final = 24
DIVERGING_SHADES: Final = 25
"""Odd, so that zero has a colour of its own."""


def render_page(evidence: Evidence, images: Mapping[str, str], strips: Mapping[str, str]) -> str:
    """Render the report as one self-contained HTML document.

    `images` and `strips`: path -> data URL of images of questions about one, and about several.
    """
    metrics = evidence.metrics
    checkpoints = metrics["checkpoints"]
    axis_tables = evidence.tables.values()
    accuracy_bounds = bounds(
        [*(each.accuracy for each in axis_tables), *(each.slices for each in axis_tables)]
    )
    limit = max_abs(
        [*(each.visual_gain for each in axis_tables), *(each.to_base for each in axis_tables)]
    )
    scale = interval_scale([entry["in_domain"] for entry in checkpoints.values()])

    def heats(name: str) -> dict[str, dict[str, Any]]:
        """Heatmaps by axis of one field of `Tables`."""
        return {
            axis: _heat(getattr(each, name), accuracy_bounds, limit)
            for axis, each in evidence.tables.items()
        }

    filters = {
        "label": label,
        "percent": lambda share, digits=1: typeset(percent(share, digits)),
        "signed": lambda share, digits=1: typeset(signed(share, digits)),
        "thousands": thousands,
        "typeset": typeset,
        "heading": _heading,
        "clip": clip,
        "strip": strip,
        "flat": lambda tree: list(flat(tree).items()),
        "verdict": verdict,
    }
    return render_html(
        Path(__file__).with_name("page.html.j2"),
        filters,
        tables=tables,
        parts=parts,
        axis_labels=AXIS_LABELS,
        disclaimer=DISCLAIMER,
        evidence=evidence,
        images=images,
        strips=strips,
        summary=metrics["summary"],
        base=metrics["base"],
        checkpoints=checkpoints,
        chance=metrics["summary"]["chance"],
        small_tests=small_tests(checkpoints),
        scale=scale,
        ticks=scale.ticks(5),
        bounds=accuracy_bounds,
        limit=limit,
        shades={"light": shades(LIGHT, SHADES), "dark": shades(DARK, SHADES)},
        diverging_shades={
            "light": shades(DIVERGING, DIVERGING_SHADES),
            "dark": shades(DIVERGING_DARK, DIVERGING_SHADES),
        },
        accuracies=heats("accuracy"),
        visual_gains=heats("visual_gain"),
        to_base=heats("to_base"),
        slices=heats("slices"),
        rewards=reward_panels(evidence.logs) if evidence.logs else None,
        sparks=[
            {"title": title, "format": form, "lines": sparklines(evidence.logs, column)}
            for column, (title, form) in tables.SPARKS.items()
        ],
        refusals=count_refusals(evidence.quarantine),
        published=published_beside(evidence),
        released_sentence=released_sentence,
        origins=group_origins(evidence.origins),
    )


def _heat(table: CrossTable, accuracy_bounds: tuple[float, float], limit: float) -> dict[str, Any]:
    """Header and rows of a heatmap; `shade` is a cell's CSS class, None without a number."""
    is_accuracy = table.measure == "accuracy"
    low, high = accuracy_bounds if is_accuracy else (-limit, limit)
    prefix, count = ("s", SHADES) if is_accuracy else ("d", DIVERGING_SHADES)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, values in table.values.items():
        rows[name] = []
        for cell, value in values.items():
            shade = None
            if value is not None:
                shade = f"{prefix}{round((value - low) / (high - low) * (count - 1))}"
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
        "has_numbers": table.has_numbers,
        "signed": not is_accuracy,
    }


def _heading(words: str) -> str:
    """Capitalise a heading; the symbols n and p stay as they are."""
    return words if words[1:2] in ("", " ") else words[0].upper() + words[1:]


def typeset(value: str | int | None) -> str:
    """Typeset a number: minus sign, grouped thousands, a dash if it is missing."""
    if isinstance(value, int):
        return thousands(value)
    if value is None or value == "-":
        return "\N{EN DASH}"
    return value.replace("+-", "\N{PLUS-MINUS SIGN}").replace("-", "\N{MINUS SIGN}")


def thousands(number: int) -> str:
    """A count with its digits grouped in threes."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
