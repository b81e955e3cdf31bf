"""Compare two runs cell by cell: two directories of predictions, the first minus the second.

    med-r1 compare no-think/predictions think/predictions
    med-r1 compare A B --json compared.json --csv compared

Both hold what stage evaluate writes, `<checkpoint>.parquet`, on the same splits: of two workspaces
or commits that differ in one setting. What Med-R1 printed of No-Think minus Think stands beside, in
tables and files of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.comparison.pairs import (
    BASE,
    MEANS,
    Comparison,
    RunPredictions,
    common_facts,
    compare,
    published_table,
    rows_of,
)
from stages.core.errors import InputError
from stages.core.outputs import atomic_file, write_json
from stages.reporting.labels import label, signed
from stages.reporting.sources import read_predictions
from stages.reporting.tables import published_cross
from stages.reporting.terminal import rich_table
from stages.scoring.metrics import DIGITS
from stages.scoring.tables import check_predictions
from stages.taxonomy import AXES

WIDTH: Final = 116
LEVEL: Final = 0.05
"""Adjusted p values below this are marked."""
AXIS_OF: Final = {BASE: "all"}
for _axis, _slugs in AXES.items():
    AXIS_OF.update(dict.fromkeys(_slugs, _axis))


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
    runs = read_run(first), read_run(second)
    compared = compare(*runs, samples, seed)
    if json_file:
        write_json(json_file, as_json(*runs, compared, samples, seed))
    if csv_folder:
        _write_csv(csv_folder, compared)
    _print(*runs, compared)


def read_run(folder: Path) -> RunPredictions:
    """The checked predictions in a directory; InputError names what is missing or wrong in it.

    Files of checkpoints that have no place in the tables, such as SFT's, are left out, and named on
    the terminal.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a directory: give two with predictions, such as predictions/"
        )
    paths = sorted(folder.glob("*.parquet"))
    known = {path.stem: path for path in paths if path.stem in AXIS_OF}
    if not known:
        raise InputError(
            f"{folder} holds no predictions of the base or a checkpoint (<checkpoint>.parquet):"
            " make them with `dvc repro`"
        )
    predictions, provenances = {}, {}
    for name, path in known.items():
        predictions[name], provenances[str(path)] = read_predictions(path, f"evaluate@{name}")
        check_predictions(predictions[name], name, AXIS_OF[name], str(path))
    if others := [path.stem for path in paths if path.stem not in AXIS_OF]:
        print(f"{folder}: left out, as they have no place in the tables: {', '.join(others)}")
    return RunPredictions(str(folder), predictions, common_facts(provenances))


def as_json(
    first: RunPredictions,
    second: RunPredictions,
    compared: Sequence[Comparison],
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """All results as plain values: shares under `axes`.

    Published-style numbers under `published`.
    """
    return {
        "first": {"source": first.source, **first.facts},
        "second": {"source": second.source, **second.facts},
        "bootstrap": {"samples": samples, "seed": seed, "clusters": "image", "confidence": 0.95},
        "axes": {
            each.axis: {
                "cells": rows_of(each.cells, DIGITS),
                "means": {
                    name: {
                        key: round(value, DIGITS) + 0.0 if isinstance(value, float) else value
                        for key, value in asdict(mean).items()
                    }
                    for name, mean in each.means.items()
                },
            }
            for each in compared
        },
        "published": {each.axis: _published_json(each.axis) for each in compared},
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


def _write_csv(folder: Path, compared: Sequence[Comparison]) -> None:
    for each in compared:
        _write_rows(folder / f"{each.axis}.csv", rows_of(each.cells, DIGITS))
    means = []
    for each in compared:
        for name, mean in each.means.items():
            means.append({"axis": each.axis, "mean": name, **asdict(mean)})
    _write_rows(
        folder / "means.csv",
        [
            {k: round(v, DIGITS) + 0.0 if isinstance(v, float) else v for k, v in row.items()}
            for row in means
        ],
    )
    printed = [(each.axis, published_table(each.axis)) for each in compared]
    rows = []
    for axis, table in printed:
        origin = {name: getattr(table, name) for name in ("unit", "measure", "source", "caveat")}
        for trained, cell in product(table.cells, repeat=2):
            value = table.at(trained, cell)
            row = {"axis": axis, "trained": trained, "tested": cell, "value": value}
            rows.append(row | origin)
    _write_rows(folder / "published.csv", rows)


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as handle,
    ):
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _print(first: RunPredictions, second: RunPredictions, compared: Sequence[Comparison]) -> None:
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    for letter, run in (("A", first), ("B", second)):
        console.print(
            Text(
                f"{letter}: {run.source}"
                f" ({', '.join(f'{name} {value}' for name, value in run.facts.items())})"
            ),
            soft_wrap=True,
        )
    for each in compared:
        console.print(_table(each))
        console.print(_means_table(each))
        table = published_table(each.axis)
        console.print(_published(each.axis))
        console.print(Text(f"Source: {table.source}. {table.caveat}", style="dim"))
    if (styles := tuple(run.facts["prompt style"] for run in (first, second))) != (
        "no-think",
        "think",
    ):
        console.print(
            Text(
                f"Printed was No-Think minus Think; A is {styles[0]}, B {styles[1]}: not the same"
                " comparison."
            )
        )
    console.print(
        Text(
            "\nDifferences are A minus B in percentage points, on the same questions; below, the"
            f" 95% interval over images with all their questions. *: McNemar's p below {LEVEL:g}"
            " after Holm over the table, the base's row by itself."
        )
    )


def _table(compared: Comparison) -> Table:
    cells = {(cell.trained, cell.tested): cell for cell in compared.cells}
    table = Table(
        title=f"A minus B by {compared.axis}: rows trained, columns tested",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for slug in AXES[compared.axis]:
        n = next((cell.n for cell in compared.cells if cell.tested == slug), 0)
        table.add_column(f"{label(slug)}\nn={n}", justify="right")
    for trained in dict.fromkeys(cell.trained for cell in compared.cells):
        row: list[Text] = []
        for slug in AXES[compared.axis]:
            cell = cells.get((trained, slug))
            if cell is None:
                row.append(Text("-"))
                continue
            sure = cell.p_holm < LEVEL
            colour = "green" if cell.difference > 0 else "red"
            style = colour if sure else ""
            words = (
                f"{signed(cell.difference)}{'*' if sure else ' '}\n{signed(cell.low, 0)}"
                f" {signed(cell.high, 0)}"
            )
            row.append(Text(words, style=f"{style} bold" if trained == slug else style))
        table.add_row(label(trained), *row)
    return table


def _means_table(compared: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("mean over", "cells", "A minus B", "95% interval"):
        table.add_column(name, justify="left" if name == "mean over" else "right")
    for name, mean in compared.means.items():
        table.add_row(
            name,
            str(mean.cells),
            signed(mean.difference),
            f"{signed(mean.low)} to {signed(mean.high)}",
        )
    return table


def _published(axis: str) -> Table:
    """What Med-R1 printed, in a table of its own."""
    printed = published_table(axis)
    means = ", ".join(f"{name} {value:+.2f}" for name, value in _published_means(axis).items())
    title = f"For comparison, Med-R1's printed {printed.measure}, {printed.unit} ({means})"
    return rich_table(published_cross(printed), title, style="dim")
