"""The page: one HTML file with everything in it, for a desk, a phone and paper, in light and dark.

The words and the structure are in page.html.j2, the looks in page.css; here the numbers are put in order for them.
Everything that a model or a data set wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.corpus.splitting.data_tests import TESTS
from stages.reporting.curves import interval_scale, reward_panels, sparklines
from stages.reporting.evidence import Evidence, count_refusals, group_origins
from stages.reporting.labels import label, p_value, percent, signed
from stages.reporting.palette import APART, APART_DARK, DARK, LIGHT, bounds, reach, shades
from stages.reporting.sheets import flat
from stages.scoring.published import HEADLINES, NO_THINK_MINUS_THINK, THIRD_PARTY
from stages.scoring.tables import CrossTable

SHADES: Final = 24
APART_SHADES: Final = 25
"""Odd, so that zero has a colour of its own."""
LONGEST: Final = 500
"""Characters of a completion that are shown."""
REFUSALS: Final = 20
"""Source sets and reasons for which refusals are listed."""
SPARKS: Final = {
    "kl": ("KL to the base", "{:.3f}"),
    "completion_length": ("Completion length, tokens", "{:.1f}"),
    "frac_reward_zero_std": ("Groups without a signal", "{:.0%}"),
}
"""Column of a training log -> what its sparklines show, and how a value of it is written."""


def render_page(evidence: Evidence, pictures: Mapping[str, str]) -> str:
    """The report as one HTML document that refers to nothing outside itself; `pictures`: path -> data address, as far as there are."""
    metrics, names = evidence.metrics, evidence.metrics["checkpoints"]
    scaled = bounds([table for tables in evidence.tables.values() for table in (tables.accuracy, tables.slices)])
    apart = reach([table for tables in evidence.tables.values() for table in (tables.visual_gain, tables.to_base)])
    scale = interval_scale([entry["in_domain"] for entry in names.values()])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "label": label,
        "percent": _percent,
        "signed": _signed,
        "p_value": lambda p: p_value(p).replace("-", "\N{EN DASH}"),
        "thousands": lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
        "clip": clip,
        "flat": lambda tree: list(flat(tree).items()),
    }
    return environment.get_template("page.html.j2").render(
        evidence=evidence,
        pictures=pictures,
        summary=metrics["summary"],
        base=metrics["base"],
        checkpoints=names,
        by_axis={axis: {name: entry for name, entry in names.items() if entry["axis"] == axis} for axis in metrics["base"]},
        chance=metrics["summary"]["chance"],
        scale=scale,
        ticks=scale.ticks(5),
        bounds=scaled,
        apart=apart,
        shades={"light": shades(LIGHT, SHADES), "dark": shades(DARK, SHADES)},
        shades_apart={"light": shades(APART, APART_SHADES), "dark": shades(APART_DARK, APART_SHADES)},
        accuracies={axis: _heat(tables.accuracy, scaled, "s", SHADES) for axis, tables in evidence.tables.items()},
        visuals={axis: _heat(tables.visual_gain, (-apart, apart), "d", APART_SHADES) for axis, tables in evidence.tables.items()},
        to_base={axis: _heat(tables.to_base, (-apart, apart), "d", APART_SHADES) for axis, tables in evidence.tables.items()},
        slices={axis: _heat(tables.slices, scaled, "s", SHADES) for axis, tables in evidence.tables.items()},
        signs=[sign["name"] for sign in next(iter(names.values()))["hacking"]],
        rewards=reward_panels(evidence.logs) if evidence.logs else None,
        sparks=[{"title": title, "format": form, "lines": sparklines(evidence.logs, column)} for column, (title, form) in SPARKS.items()],
        refusals=count_refusals(evidence.quarantine),
        most_refusals=REFUSALS,
        tests=TESTS,
        printed={"headlines": HEADLINES, "tables": NO_THINK_MINUS_THINK, "others": THIRD_PARTY},
        origins=group_origins(evidence.origins),
    )


def _heat(table: CrossTable, scaled: tuple[float, float], prefix: str, count: int) -> dict[str, Any]:
    """Heads and rows of a table of coloured cells; `shade` is the class of a cell's colour, None where there is no number."""
    low, high = scaled
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, values in table.values.items():
        rows[name] = []
        for cell, value in values.items():
            shade = None if value is None else f"{prefix}{round((value - low) / (high - low) * (count - 1))}"
            rows[name].append({"value": value, "shade": shade, "own": table.own.get(name) == cell, "macro": cell == "macro"})
    return {"questions": table.questions, "rows": rows, "there": table.there, "signed": table.measure != "accuracy"}


def _percent(share: float | None, digits: int = 1) -> str:
    return percent(share, digits).replace("-", "\N{EN DASH}")


def _signed(share: float | None, digits: int = 1) -> str:
    return "\N{EN DASH}" if share is None else signed(share, digits).replace("-", "\N{MINUS SIGN}")


def clip(text: str) -> str:
    """A long text cut, and how much of it is missing."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"
