"""Build and print the report: shared by the stage and `med-r1 report`.

Everything is computed from predictions, blind baselines, training logs and split files, without a
model, a GPU or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import atomic_directory, atomic_file, read_json, write_json
from stages.core.params import Params, load_params
from stages.core.provenance import collect_provenance
from stages.corpus.quarantine.ledger import Quarantine
from stages.corpus.splitting.data_tests import Results
from stages.predictions.schema import LEFT_OUT
from stages.prompts.styles import Style
from stages.reporting.evidence import (
    Evidence,
    SplitSize,
    cross_tables,
    group_origins,
    outputs_of_indicators,
    synthetic_share,
)
from stages.reporting.examples.cases import pick_cases
from stages.reporting.examples.gallery import inline_images, inline_strips
from stages.reporting.markdown import render_card, render_report
from stages.reporting.sheets import write_sheets, write_training
from stages.reporting.sources import check_same_kind, read_predictions
from stages.reporting.terminal import print_report
from stages.scoring.blind_baseline import BlindBaseline, read_blind_baseline
from stages.scoring.metrics import compute_metrics
from stages.scoring.predictions import write_scored
from stages.scoring.tables import (
    CELLS,
    Target,
    check_predictions,
    check_same_questions,
)
from stages.taxonomy import AXIS_NAMES, parse_fold

METRICS = layout.REPORT / "metrics.json"
SUMMARY = layout.REPORT / "summary.json"
"""The few numbers of METRICS that fit on a screen, for `dvc metrics show`."""
PAGE = layout.REPORT / "index.html"
TRAINING = layout.REPORT / "training.csv"
"""The training curves of all checkpoints, for `dvc plots`."""
PROVENANCE = layout.REPORT / "provenance.json"
"""Provenance of the CSV tables, which cannot hold it themselves."""


@dataclass
class ReportInputs:
    """Inputs of a report, read and checked."""

    params: Params
    targets: dict[str, Target]
    predictions: dict[str, pd.DataFrame]
    origins: dict[str, dict[str, Any]]
    kind: str | None
    style: Style
    blind_baselines: dict[tuple[str, str], BlindBaseline] = field(default_factory=dict)
    logs: dict[str, pd.DataFrame] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Checkpoint, "base" first -> provenance of its weights."""
    splits: list[SplitSize] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    leaks: dict[str, Any] | None = None
    """For metrics.json: the kind of split, and the leaks of both kinds."""
    quarantine: list[Quarantine] = field(default_factory=list)
    data_tests: Results | None = None
    missing: list[str] = field(default_factory=list)
    """Descriptions of the parts that the report lacks."""


def rebuild(folder: Path, blind_baselines: Path = layout.PRIOR, out: Path = layout.REBUILT) -> None:
    """Build a report from predictions and, if present, blind baselines; the rest is missing."""
    params = load_params()
    paths = {name: folder / f"{name}.parquet" for name in ["base", *params.checkpoints]}
    absent = [name for name, path in paths.items() if name != "base" and not path.is_file()]
    unknown = {path.stem for path in folder.glob("*.parquet")} - paths.keys()
    if unknown:
        raise InputError(
            f"{folder}: predictions of {', '.join(sorted(unknown))}, unknown in params.yaml: add"
            " them to checkpoints there"
        )
    present = {name: path for name, path in paths.items() if name not in absent}
    inputs = read_inputs(params, present, None)
    if not inputs.targets:
        raise InputError(
            f"{folder} contains no predictions of a checkpoint: give a folder with base.parquet and"
            " <checkpoint>.parquet"
        )
    if absent:
        inputs.missing.append(f"predictions of {', '.join(absent)}")
    if blind_baselines.is_dir():
        for axis, slug in sorted({(each.axis, each.cell) for each in inputs.targets.values()}):
            path = blind_baselines / axis / f"{slug}.json"
            inputs.blind_baselines[axis, slug] = read_blind_baseline(path)
    else:
        inputs.missing.append(
            f"blind baseline, majority letter and prior-balanced subset (no {blind_baselines})"
        )
    inputs.missing += [
        "sizes and leaks of the splits, question texts",
        "training curves",
        "counts of refused inputs",
        "data tests",
    ]
    write_report(inputs, out)


def show() -> None:
    """Print report/metrics.json as a table."""
    print_report(read_json(METRICS, "run `dvc repro --force report`"), PAGE)


def targets_of(params: Params) -> dict[str, Target]:
    """Row of the report -> what its checkpoint was trained on, in table order.

    Those of one cell stay in the order of params.yaml.
    """
    targets = {}
    for name, members in params.rows.items():
        entry = params.checkpoints[members[0]]
        fold = parse_fold(entry.split) if params.splits.folds else None
        split = fold[0] if fold else entry.split
        targets[name] = Target(
            entry.axis, split, entry.method, params.joint_cells(split), members if fold else ()
        )
    axes = params.taxonomy.axes

    def position(name: str) -> tuple[int, int]:
        target = targets[name]
        order = [*axes[target.axis], *params.splits.joint]  # unions behind their parts
        return AXIS_NAMES.index(target.axis), order.index(target.cell)

    return {name: targets[name] for name in sorted(targets, key=position)}


def read_inputs(params: Params, paths: dict[str, Path], kind: str | None) -> ReportInputs:
    """Read and check predictions of the base and each checkpoint in `paths`, on one split kind.

    Of a cross-validation, the checkpoints of all folds are one row, which answers every question.
    """
    targets = {
        name: target
        for name, target in targets_of(params).items()
        if all(member in paths for member in target.folds or (name,))
    }
    axes = params.taxonomy.axes
    predictions = {}
    origins = {}
    left_out = []
    for name in ["base", *targets]:
        members = targets[name].folds if name in targets and targets[name].folds else (name,)
        path = paths[members[0]]
        rows, origin = _read_pooled(members, paths, name)
        if origin.get(LEFT_OUT):
            left_out.append(name)
            del targets[name]
            continue
        predictions[name] = rows
        origins[name] = origin
        if name == "base":
            check_predictions(predictions[name], name, "all", str(path), axes)
            continue
        target = targets[name]
        check_predictions(predictions[name], name, target.axis, str(path), axes, target.cells)
        check_same_questions(predictions["base"], predictions[name], target.axis, str(path))
    style = origins["base"].get("params", {}).get("prompt", {}).get("style")
    if style not in get_args(Style):
        style = params.prompt.style
    kind = check_same_kind(origins, kind)
    inputs = ReportInputs(params, targets, predictions, origins, kind, style)
    if left_out:
        inputs.missing.append(
            f"checkpoints left out, as their splits have too little data (matrix in params.yaml):"
            f" {', '.join(left_out)}"
        )
    return inputs


def _read_pooled(
    members: Sequence[str], paths: Mapping[str, Path], name: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions and provenance of a row: those of one checkpoint, or of all its folds together.

    The provenance of several is the first one's, with the weights of each.
    """
    read = [read_predictions(paths[member], f"evaluate@{member}") for member in members]
    rows, origin = read[0]
    if len(members) == 1:
        return rows, origin
    for member, (_, other) in zip(members, read, strict=True):
        if any(other.get(key) != origin.get(key) for key in ("params", "corpus")):
            raise InputError(
                f"{paths[member]} was made with other settings or another corpus than"
                f" {paths[members[0]]}: run `dvc repro evaluate@{member}`"
            )
    together = pd.concat([each for each, _ in read], ignore_index=True)
    together = together.sort_values("question_id", kind="stable", ignore_index=True)
    weights = {
        member: other.get("weights") for member, (_, other) in zip(members, read, strict=True)
    }
    return together.assign(checkpoint=name), origin | {"weights": weights}


def _collect_evidence(inputs: ReportInputs) -> Evidence:
    """Compute all numbers and collect what is shown beside them."""
    settings = inputs.params.report
    metrics = compute_metrics(
        inputs.predictions,
        inputs.targets,
        settings.bootstrap_samples,
        settings.bootstrap_seed,
        axes=inputs.params.taxonomy.axes,
        blind_baselines=inputs.blind_baselines,
        style=inputs.style,
    )
    if any(
        entry["in_domain"]["visual"]["shuffled"] is None
        for entry in metrics["checkpoints"].values()
    ):
        inputs.missing.append(
            "visual gain of at least one checkpoint (evaluate.ablations was off, or no other test"
            " question of its modality shows as many images)"
        )
    provenance = collect_provenance(
        {"report": settings, "splits.kind": inputs.kind or "not recorded"}
    )
    metrics |= {"splits": inputs.leaks, "missing": inputs.missing, "provenance": provenance}
    return Evidence(
        metrics=metrics,
        tables=cross_tables(inputs.predictions, inputs.targets, inputs.params.taxonomy.axes),
        logs=inputs.logs,
        splits=inputs.splits,
        quarantine=inputs.quarantine,
        data_tests=inputs.data_tests,
        cases=pick_cases(inputs.predictions, inputs.targets, inputs.problems),
        outputs=outputs_of_indicators(metrics, inputs.predictions),
        origins=inputs.origins,
        weights=inputs.weights,
        synthetic=synthetic_share(inputs.predictions["base"]),
        missing=inputs.missing,
        shows_images=inputs.params.report.images,
        folds={name: each.folds for name, each in inputs.targets.items() if each.folds},
    )


def write_report(inputs: ReportInputs, folder: Path) -> None:
    """Compute everything, then write all files of the report into `folder`."""
    from stages.reporting.page import render_page  # imports matplotlib, as in `_write_figures`

    evidence = _collect_evidence(inputs)
    provenance = {
        **evidence.metrics["provenance"],
        "predictions": [
            {"checkpoints": names, "provenance": origin}
            for names, origin in group_origins(evidence.origins)
        ],
    }
    images, strips = {}, {}
    if evidence.shows_images:
        images = inline_images(case.image for case in evidence.cases if not case.images)
        strips = inline_strips(evidence.cases)
    _write_figures(folder / "figures", evidence, inputs.targets, provenance)
    with atomic_directory(folder / "tables") as temporary:
        write_sheets(temporary, evidence)
        (temporary / "predictions").mkdir()
        for name, rows in inputs.predictions.items():
            write_scored(
                temporary / "predictions" / f"{name}.parquet",
                rows,
                inputs.origins[name],
                with_context=evidence.shows_images,
            )
    if evidence.logs:
        with atomic_file(folder / TRAINING.name) as temporary:
            write_training(temporary, evidence.logs)
    with atomic_directory(folder / "cards") as temporary:
        for name in inputs.targets:
            (temporary / f"{name}.md").write_text(render_card(name, evidence), encoding="utf-8")
    texts = {PAGE.name: render_page(evidence, images, strips), "report.md": render_report(evidence)}
    for name, text in texts.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(folder / PROVENANCE.name, provenance)
    write_json(folder / METRICS.name, evidence.metrics)
    write_json(folder / SUMMARY.name, _summary(evidence.metrics))
    print(f"report: {len(inputs.targets)} checkpoints and the base -> {folder / PAGE.name}")
    if inputs.missing:
        print(f"report: missing: {'; '.join(inputs.missing)}")


def _write_figures(
    folder: Path,
    evidence: Evidence,
    targets: dict[str, Target],
    provenance: dict[str, Any],
) -> None:
    # imports matplotlib: not before the inputs are read and checked
    from stages.reporting.figures import save_heatmap, save_training

    with atomic_directory(folder) as temporary:
        for axis, tables in evidence.tables.items():
            by = CELLS[axis].replace("_", " ")
            for prefix, table, title in (
                ("", tables.accuracy, "Accuracy (%)"),
                ("to_base_", tables.to_base, "Accuracy minus the base's (points)"),
                (
                    "visual_gain_",
                    tables.visual_gain,
                    "Accuracy minus that with another image (points)",
                ),
            ):
                # without ablations there are no visual gains to draw
                if table.measure != "visual gain" or table.has_numbers:
                    path = temporary / f"{prefix}{axis}.png"
                    save_heatmap(path, table, f"{title} by {by}", provenance)
        if evidence.logs:
            axes = {name: targets[name].axis for name in evidence.logs}
            save_training(temporary / "training.png", evidence.logs, axes, provenance)


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    own = {name: entry["in_domain"] for name, entry in metrics["checkpoints"].items()}
    provenance = metrics["provenance"]
    return {
        **{name: value for name, value in metrics["summary"].items() if name != "intervals"},
        "gain": {name: entry["gain"] for name, entry in own.items()},
        "git_commit": provenance["git_commit"],
        "corpus": provenance["corpus"],
    }
