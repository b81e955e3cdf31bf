"""Stage report: from the predictions of all checkpoints to one page, figures, tables and metrics.json.

    python -m stages.report         make report/
    python -m stages.report show    print report/metrics.json as a table

Everything is computed from predictions, training logs and split files: no model, no GPU and no torch are needed.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages import layout
from stages.cli import run_stage
from stages.corpus.leaks import read_leaks
from stages.corpus.modalities import AXES, MODALITIES
from stages.corpus.quarantine import read_quarantine
from stages.corpus.splits import read_split
from stages.errors import InputError
from stages.outputs import whole_file, write_json
from stages.params import Params, load_params
from stages.provenance import provenance
from stages.reporting import evidence as gather
from stages.reporting.figures import save_heatmap, save_training
from stages.reporting.page import render_page
from stages.reporting.sources import read_predictions, read_training_log
from stages.reporting.terminal import print_report
from stages.scoring.metrics import DIGITS, compute_metrics
from stages.scoring.tables import CELLS, CrossTable, check_predictions, check_same_questions, cross_table

METRICS = layout.REPORT / "metrics.json"
SUMMARY = layout.REPORT / "summary.json"
"""The few numbers of METRICS that fit on a screen: what `dvc metrics show` prints."""
PAGE = layout.REPORT / "index.html"
PROVENANCE = layout.REPORT / "provenance.json"
"""Where the tables come from, which as CSV have no room for it."""


def main() -> None:
    """Make the report, or show the one there is."""
    parser = argparse.ArgumentParser(prog="python -m stages.report", description="Make the report, or show the one there is.")
    parser.add_argument("action", nargs="?", choices=["make", "show"], default="make")
    {"make": make, "show": show}[parser.parse_args().action]()


def make() -> None:
    """Read and check everything, then write report/; nothing is written if an input is refused."""
    params = load_params()
    axes = {name: checkpoint.axis for name, checkpoint in params.checkpoints.items()}
    evidence = _evidence(params, axes)
    facts = _provenance(evidence)
    for axis, table in evidence.crosses.items():
        _write_cross(layout.REPORT / f"cross_{axis}.csv", table)
        with whole_file(layout.REPORT / f"{axis}.png") as temporary:
            save_heatmap(temporary, table, f"Accuracy (%) by {CELLS[axis].replace('_', ' ')}", facts)
    with whole_file(layout.REPORT / "training.png") as temporary:
        save_training(temporary, evidence.logs, axes, facts)
    with whole_file(PAGE) as temporary:
        temporary.write_text(render_page(evidence), encoding="utf-8")
    write_json(PROVENANCE, facts)
    write_json(METRICS, evidence.metrics)
    write_json(SUMMARY, _summary(evidence.metrics))
    print(f"report: {len(axes)} checkpoints and the base -> {PAGE}")


def show() -> None:
    """Print report/metrics.json as a table."""
    try:
        metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{METRICS} not found: there is no report yet; make it with `dvc repro report`") from None
    except ValueError as error:
        raise InputError(f"{METRICS} is not JSON ({error}); make it again with `dvc repro --force report`") from error
    print_report(metrics, PAGE)


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    gains = {name: entry["in_domain"]["gain"] for name, entry in metrics["checkpoints"].items()}
    facts = metrics["provenance"]
    return {**metrics["summary"], "gain": gains, "git_commit": facts["git_commit"], "corpus": facts["corpus"]}


def _provenance(evidence: gather.Evidence) -> dict[str, Any]:
    """Where tables and figures come from: the report's own provenance, and that of the predictions it was made from."""
    predictions = [{"checkpoints": names, "provenance": origin} for names, origin in evidence.origins]
    return {**evidence.metrics["provenance"], "predictions": predictions}


def _evidence(params: Params, axes: Mapping[str, str]) -> gather.Evidence:
    predictions, origins = _predictions(params)
    logs = {name: read_training_log(layout.training_log(name), f"train@{name}") for name in axes}
    accounts = ["download.json", *(f"resize/{slug}.json" for slug in MODALITIES)]
    splits, problems = _splits(predictions["base"], params.splits.kind)
    leaks = read_leaks(layout.LEAKS)
    metrics = compute_metrics(predictions, axes, params.report.bootstrap_samples, params.report.bootstrap_seed)
    used = {axis: {name: rows for name, rows in predictions.items() if axes.get(name, axis) == axis} for axis in metrics["base"]}
    other = {"modality": CELLS["task"], "task": CELLS["modality"]}
    return gather.Evidence(
        metrics=metrics
        | {"splits": gather.splits_used(params.splits.kind, splits, leaks)}
        | {"provenance": provenance({"report": params.report, "splits.kind": params.splits.kind})},
        crosses={axis: cross_table(rows, axis, CELLS[axis]) for axis, rows in used.items()},
        slices={axis: cross_table(rows, axis, other[axis]) for axis, rows in used.items()},
        logs=logs,
        splits=splits,
        quarantine=[read_quarantine(layout.QUARANTINE / name) for name in accounts],
        examples=gather.pick_examples(predictions, axes, problems),
        origins=gather.group_origins(origins),
        synthetic=gather.synthetic_share(predictions["base"]),
    )


def _predictions(params: Params) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The checked predictions of the base and of every checkpoint, and their provenance."""
    predictions, origins = {}, {}
    for name in ["base", *params.checkpoints]:
        path = layout.predictions(name)
        axis = params.evaluations[name].axis
        predictions[name], origins[name] = read_predictions(path, f"evaluate@{name}")
        check_predictions(predictions[name], name, axis, str(path))
        if name != "base":
            check_same_questions(predictions["base"], predictions[name], axis, str(path))
    return predictions, origins


def _splits(base: pd.DataFrame, kind: str) -> tuple[list[gather.Split], dict[str, str]]:
    """Count the splits and find the words of each test question, by its id; refuse predictions made on other splits."""
    splits: list[gather.Split] = []
    problems: dict[str, str] = {}
    for axis, slugs in AXES.items():
        known: set[str] = set()
        for slug in slugs:
            train, test = (read_split(layout.split(axis, slug, part, kind)) for part in ("train", "test"))
            splits.append(gather.count_split(axis, slug, train, test))
            problems |= {question["question_id"]: question["problem"] for question in test}
            known |= {question["question_id"] for question in test}
        if differing := sorted(known ^ set(base.loc[base[f"{axis}_test"], "question_id"])):
            raise InputError(
                f"{layout.predictions('base')}: question {differing[0]!r} is one of {len(differing)} that are not in both the "
                f"predictions and {layout.SPLITS / kind / axis}; the splits have changed since: `dvc repro evaluate@base`"
            )
    return splits, problems


def _write_cross(path: Path, table: CrossTable) -> None:
    """One row a checkpoint, an empty field where nothing was asked; the first row counts the questions."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["checkpoint", *table.questions, "macro"])
        writer.writerow(["questions", *table.questions.values(), ""])
        for name, row in table.accuracy.items():
            writer.writerow([name, *("" if value is None else round(value, DIGITS) for value in row.values())])


if __name__ == "__main__":
    run_stage(main)
