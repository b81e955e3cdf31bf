"""The tables of the report as CSV: one file per table, an empty field for a missing number."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from stages.reporting.curves import thinned
from stages.reporting.evidence import Evidence
from stages.reporting.parts import sheet_of
from stages.reporting.released import published_beside
from stages.reporting.sources import LOG_COLUMNS
from stages.reporting.tables import MISSING, Sheet
from stages.scoring.metrics import DIGITS
from stages.scoring.tables import CrossTable


def write_sheets(folder: Path, evidence: Evidence) -> None:
    """Write all tables into an empty folder."""
    checkpoints = evidence.metrics["checkpoints"]
    _write(folder / "in_domain.csv", *_in_domain(checkpoints))
    _write(folder / "datasets.csv", *_datasets(checkpoints))
    _write(folder / "reward_hacking.csv", *_indicators(checkpoints))
    if contributions := evidence.metrics.get("contributions"):
        _write(folder / "contributions.csv", *sheet_of(contributions))
    if (published := published_beside(evidence)) is not None:
        _write(folder / "published.csv", *_plain(published["headlines"]))
        _write(folder / "published_by_others.csv", *_plain(published["others"]))
    for axis, tables in evidence.tables.items():
        _write(folder / f"cross_{axis}.csv", *_cross(tables.accuracy))
        _write(folder / f"visual_gain_{axis}.csv", *_cross(tables.visual_gain))
        _write(folder / f"to_base_{axis}.csv", *_cross(tables.to_base))
        _write(folder / f"slices_{axis}.csv", *_cross(tables.slices))


def write_training(path: Path, logs: Mapping[str, pd.DataFrame]) -> None:
    """Write the training curves of all checkpoints as one long table, for `dvc plots`.

    Columns checkpoint, step, metric and value, one row per logged value. Long logs are reduced to
    means over blocks of steps, because the plots embed the whole table.
    """
    rows = []
    for name, log in logs.items():
        blocks = thinned(log)
        for metric in LOG_COLUMNS[1:]:
            logged = blocks[["step", metric]].dropna()
            rows += [
                [name, f"{step:g}", metric, f"{value:.6g}"] for step, value in logged.to_numpy()
            ]
    _write(path, ["checkpoint", "step", "metric", "value"], rows)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys; an empty mapping keeps its own key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _in_domain(checkpoints: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    rows = {}
    for name, entry in checkpoints.items():
        own = {key: value for key, value in entry["in_domain"].items() if key != "by_dataset"}
        rows[name] = {key: entry[key] for key in ("axis", "cell", "method")} | flat(own)
    # a part that all checkpoints lack is one column without a value
    columns = list(dict.fromkeys(chain.from_iterable(rows.values())))
    table = [[name, *(row.get(column) for column in columns)] for name, row in rows.items()]
    return ["checkpoint", *columns], table


def _datasets(checkpoints: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    columns = ["n", "accuracy", "base", "blind_baseline", "visual_gain"]
    rows = []
    for name, entry in checkpoints.items():
        for dataset, scores in entry["in_domain"]["by_dataset"].items():
            rows.append([name, dataset, *(scores[column] for column in columns)])
    return ["checkpoint", "dataset", *columns], rows


def _indicators(checkpoints: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    columns = ["name", "triggered", "count", "n", "measured", "limit", "what"]
    rows = []
    for name, entry in checkpoints.items():
        for indicator in entry["hacking"]:
            values = [indicator[column] for column in columns]
            rows.append([name, *values, " ".join(indicator["question_ids"])])
    return ["checkpoint", *columns, "question_ids"], rows


def _cross(table: CrossTable) -> tuple[list[str], list[list[Any]]]:
    """One row per checkpoint, after a row with the numbers of questions."""
    rows = [
        [name, *("" if value is None else round(value, DIGITS) + 0.0 for value in row.values())]
        for name, row in table.values.items()
    ]
    counts = ["questions", *table.questions.values(), ""]
    return ["checkpoint", *table.questions, "macro"], [counts, *rows]


def _plain(sheet: Sheet) -> tuple[list[str], list[list[Any]]]:
    """A table of the page as it stands there."""
    rows = [["" if cell is MISSING else cell.value for cell in row.cells] for row in sheet.rows]
    return [column.name for column in sheet.columns], rows


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
