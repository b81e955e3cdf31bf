"""Compare two runs cell by cell: two directories of predictions, the first minus the second.

    med-r1 compare no-think/predictions think/predictions
    med-r1 compare A B --json compared.json --csv compared

Both contain what stage evaluate writes, `<checkpoint>.parquet`, on the same splits: for example
from two workspaces or commits that differ in one setting. Med-R1's published differences, No-Think
minus Think, are shown beside them in separate tables and files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.comparison.pairs import (
    BASE,
    MEANS,
    Comparison,
    RunPredictions,
    axes_of,
    axis_named,
    common_properties,
    compare,
    published_table,
    rows_of,
)
from stages.comparison.parts import PartComparison, compare_parts, parts_rows, parts_sheet
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import atomic_file, write_json
from stages.core.params import load_params
from stages.reporting.labels import label, signed
from stages.reporting.sources import read_predictions
from stages.reporting.tables import published_cross
from stages.reporting.terminal import rich_table
from stages.scoring.metrics import DIGITS
from stages.scoring.statistics import SIGNIFICANCE, is_significant
from stages.scoring.tables import check_predictions
from stages.taxonomy import AXIS_NAMES, Axes

WIDTH: Final = 116

Parts = Mapping[str, Sequence[PartComparison]]
"""Axis -> the parts of questions in both runs; empty without such questions."""


def run(
    first: Path,
    second: Path,
    *,
    json_file: Path | None,
    csv_folder: Path | None,
    samples: int,
    seed: int,
) -> None:
    """Read, check and compare two prediction folders; print the tables and write requested files.

    `samples` and `seed` are those of the bootstrap.
    """
    runs = (read_run(first), read_run(second))
    comparisons = compare(*runs, axes_of(runs, _axes_in_order()), samples, seed)
    parts = {
        each.axis: compare_parts(*runs, each.axis, each.slugs, samples, seed)
        for each in comparisons
    }
    if json_file:
        write_json(json_file, as_json(*runs, comparisons, parts, samples, seed))
    if csv_folder:
        _write_csv(csv_folder, comparisons, parts)
    _print(*runs, comparisons, parts)


def read_run(folder: Path) -> RunPredictions:
    """Read and check the predictions in a directory; InputError names what is missing or invalid.

    Files of checkpoints without a row in the tables, such as SFT's, are skipped and printed.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a directory: give two directories of predictions, such as"
            " predictions/"
        )
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise InputError(
            f"{folder} contains no predictions of the base or a checkpoint (<checkpoint>.parquet):"
            " run `dvc repro`"
        )
    predictions = {}
    provenances = {}
    skipped = []
    for path in paths:
        name = path.stem
        try:
            rows, provenance = read_predictions(path, f"evaluate@{name}")
        except InputError:
            if name == BASE or any(name in slugs for slugs in _axes_in_order().values()):
                raise
            skipped.append(name)
            continue
        axis = "all" if name == BASE else axis_named(rows, name)
        if axis is None:
            skipped.append(name)
            continue
        predictions[name] = rows
        provenances[str(path)] = provenance
        run = RunPredictions(str(folder), {name: rows}, {})
        check_predictions(rows, name, axis, str(path), axes_of([run], _axes_in_order()))
    if not predictions:
        raise InputError(
            f"{folder} contains no predictions of the base or a checkpoint by GRPO"
            " (<checkpoint>.parquet): run `dvc repro`"
        )
    if skipped:
        print(f"{folder}: skipped, as the tables have no row for them: {', '.join(skipped)}")
    return RunPredictions(str(folder), predictions, common_properties(provenances))


def _axes_in_order() -> Axes:
    """The slugs of the project that this is run in, whose order tables follow; else none."""
    if layout.PARAMS.is_file():
        return load_params().taxonomy.axes
    return dict.fromkeys(AXIS_NAMES, ())


def as_json(
    first: RunPredictions,
    second: RunPredictions,
    comparisons: Sequence[Comparison],
    parts: Parts,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """All results as plain values: ours under `axes`, Med-R1's under `published`.

    An axis has `parts` only if questions show several images or have context.

    Accuracies and differences are from 0 to 1 in ours, and in the published unit in Med-R1's.
    """
    return {
        "first": {"source": first.source, **first.properties},
        "second": {"source": second.source, **second.properties},
        "bootstrap": {"samples": samples, "seed": seed, "clusters": "image", "confidence": 0.95},
        "axes": {
            each.axis: {
                "cells": rows_of(each.cells, DIGITS),
                "means": {name: _rounded(asdict(mean)) for name, mean in each.means.items()},
                **({"parts": rows} if (rows := parts_rows(parts[each.axis], DIGITS)) else {}),
            }
            for each in comparisons
        },
        "published": {each.axis: _published_json(each.axis) for each in comparisons},
    }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, DIGITS) + 0.0 if isinstance(value, float) else value
        for name, value in values.items()
    }


def _published_json(axis: str) -> dict[str, Any]:
    table = published_table(axis)
    return {
        **{name: getattr(table, name) for name in ("measure", "unit", "source", "caveat")},
        "cells": {
            trained: {cell: table.at(trained, cell) for cell in table.cells}
            for trained in table.cells
        },
        "means": {name: round(value, 2) for name, value in _published_means(axis).items()},
    }


def _published_means(axis: str) -> dict[str, float]:
    table = published_table(axis)
    return dict(zip(MEANS, (table.in_domain, table.cross_domain, table.mean), strict=True))


def _write_csv(folder: Path, comparisons: Sequence[Comparison], parts: Parts) -> None:
    for each in comparisons:
        _write_rows(folder / f"{each.axis}.csv", rows_of(each.cells, DIGITS))
    means = []
    for each in comparisons:
        for name, mean in each.means.items():
            means.append(_rounded({"axis": each.axis, "mean": name, **asdict(mean)}))
    _write_rows(folder / "means.csv", means)
    if any(parts.values()):
        own: list[dict[str, Any]] = []
        for axis, each_part in parts.items():
            own += [{"axis": axis, **row} for row in parts_rows(each_part, DIGITS)]
        _write_rows(folder / "parts.csv", own)
    rows = []
    for each in comparisons:
        table = published_table(each.axis)
        origin = {name: getattr(table, name) for name in ("unit", "measure", "source", "caveat")}
        for trained, cell in product(table.cells, repeat=2):
            value = table.at(trained, cell)
            row = {"axis": each.axis, "trained": trained, "tested": cell, "value": value}
            rows.append(row | origin)
    _write_rows(folder / "published.csv", rows)


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with atomic_file(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def _print(
    first: RunPredictions,
    second: RunPredictions,
    comparisons: Sequence[Comparison],
    parts: Parts,
) -> None:
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    for letter, run in (("A", first), ("B", second)):
        properties = ", ".join(f"{name} {value}" for name, value in run.properties.items())
        console.print(Text(f"{letter}: {run.source} ({properties})"), soft_wrap=True)
    for each in comparisons:
        console.print(_table(each))
        console.print(_means_table(each))
        if parts[each.axis]:
            console.print(_parts_table(each, parts[each.axis]))
        table = published_table(each.axis)
        console.print(_published(each.axis))
        console.print(Text(f"Source: {table.source}. {table.caveat}", style="dim"))
    styles = (first.properties["prompt style"], second.properties["prompt style"])
    if styles != ("no-think", "think"):
        console.print(
            Text(
                f"Med-R1 published No-Think minus Think; here A is {styles[0]} and B {styles[1]}:"
                " not the same comparison."
            )
        )
    if (kind := first.properties["split kind"]) != "released":
        console.print(
            Text(
                "Med-R1's test questions are those that it released (splits.kind: released); here"
                f" they are {kind}: its numbers are about other questions."
            )
        )
    console.print(
        Text(
            "\nDifferences are A minus B in percentage points, on the same questions, with 95%"
            " intervals that resample images with all their questions. *: McNemar's p below"
            f" {SIGNIFICANCE:g}, adjusted (Holm) over the table; the base's row is a family of its"
            " own."
        )
    )


def _table(comparison: Comparison) -> Table:
    cells = {(cell.trained, cell.tested): cell for cell in comparison.cells}
    table = Table(
        title=f"A minus B by {comparison.axis}: rows trained, columns tested",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for slug in comparison.slugs:
        n = next((cell.n for cell in comparison.cells if cell.tested == slug), 0)
        table.add_column(f"{label(slug)}\nn={n}", justify="right")
    for trained in dict.fromkeys(cell.trained for cell in comparison.cells):
        row: list[Text] = []
        for slug in comparison.slugs:
            cell = cells.get((trained, slug))
            if cell is None:
                row.append(Text("-"))
                continue
            significant = is_significant(cell.p_holm)
            colour = "green" if cell.difference > 0 else "red"
            style = colour if significant else ""
            interval = f"{signed(cell.low, 0)} {signed(cell.high, 0)}"
            text = f"{signed(cell.difference)}{'*' if significant else ' '}\n{interval}"
            row.append(Text(text, style=f"{style} bold" if trained == slug else style))
        table.add_row(label(trained), *row)
    return table


def _means_table(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("mean over", "cells", "A minus B", "95% interval"):
        table.add_column(name, justify="left" if name == "mean over" else "right")
    for name, mean in comparison.means.items():
        table.add_row(
            name,
            str(mean.cells),
            signed(mean.difference),
            f"{signed(mean.low)} to {signed(mean.high)}",
        )
    return table


def _parts_table(comparison: Comparison, parts: Sequence[PartComparison]) -> Table:
    names = {slug: label(slug) for slug in comparison.slugs}
    title = (
        f"Own tests by {comparison.axis}, several images and context: as asked, the accuracy; else"
        " its gain over the variant"
    )
    return rich_table(parts_sheet(parts, names), title)


def _published(axis: str) -> Table:
    """Med-R1's published differences, in a table of their own."""
    published = published_table(axis)
    means = ", ".join(f"{name} {value:+.2f}" for name, value in _published_means(axis).items())
    title = f"For comparison, published by Med-R1: {published.measure}, {published.unit} ({means})"
    return rich_table(published_cross(published), title, style="dim")
