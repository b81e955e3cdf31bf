"""Build and print the report: shared by the stage and `med-r1 report`.

Everything is computed from predictions, blind baselines, training logs and split files: no model,
no GPU and no torch are needed.
"""

from __future__ import annotations

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
from stages.prompts.styles import Style
from stages.reporting import evidence as gather
from stages.reporting.figures import save_heatmap, save_training
from stages.reporting.gallery import inline_images
from stages.reporting.markdown import render_card, render_report
from stages.reporting.page import render_page
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
from stages.taxonomy import AXES

METRICS = layout.REPORT / "metrics.json"
SUMMARY = layout.REPORT / "summary.json"
"""The few numbers of METRICS that fit on a screen: what `dvc metrics show` prints."""
PAGE = layout.REPORT / "index.html"
TRAINING = layout.REPORT / "training.csv"
"""The training curves of all checkpoints, which `dvc plots` draws."""
PROVENANCE = layout.REPORT / "provenance.json"
"""Where the tables come from, which as CSV have no room for it."""


@dataclass
class Sources:
    """What a report is made of, read and checked."""

    params: Params
    targets: dict[str, Target]
    predictions: dict[str, pd.DataFrame]
    origins: dict[str, dict[str, Any]]
    kind: str | None
    style: Style
    blind_baselines: dict[tuple[str, str], BlindBaseline] = field(default_factory=dict)
    logs: dict[str, pd.DataFrame] = field(default_factory=dict)
    trained: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Checkpoint, "base" first -> provenance of its weights."""
    splits: list[gather.Split] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    used: dict[str, Any] | None = None
    """For metrics.json: the kind of split, and what leaks under either."""
    quarantine: list[Quarantine] = field(default_factory=list)
    data_tests: Results | None = None
    missing: list[str] = field(default_factory=list)


def rebuild(folder: Path, blind_baselines: Path = layout.PRIOR, out: Path = layout.REBUILT) -> None:
    """Report from a folder of predictions and, if present, blind baselines.

    The rest shows as missing.
    """
    params = load_params()
    paths = {name: folder / f"{name}.parquet" for name in ["base", *params.checkpoints]}
    absent = [name for name, path in paths.items() if name != "base" and not path.is_file()]
    unknown = {path.stem for path in folder.glob("*.parquet")} - paths.keys()
    if unknown:
        raise InputError(
            f"{folder}: predictions of {', '.join(sorted(unknown))}, which params.yaml does not"
            " know: add them to checkpoints there"
        )
    sources = read_sources(
        params, {name: path for name, path in paths.items() if name not in absent}, None
    )
    if not sources.targets:
        raise InputError(
            f"{folder} holds no predictions of a checkpoint: give the folder with base.parquet and"
            " <checkpoint>.parquet"
        )
    sources.missing = [f"predictions of {', '.join(absent)}"] if absent else []
    if blind_baselines.is_dir():
        wanted = {(target.axis, target.cell) for target in sources.targets.values()}
        sources.blind_baselines = {
            (axis, slug): read_blind_baseline(blind_baselines / axis / f"{slug}.json")
            for axis, slug in sorted(wanted)
        }
    else:
        sources.missing.append(
            f"blind baseline, majority letter and prior-balanced subset (no {blind_baselines})"
        )
    sources.missing += [
        "sizes and leaks of the splits, words of the questions",
        "training curves",
        "counts of refused inputs",
        "tests of the data",
    ]
    write_report(sources, out)


def show() -> None:
    """Print report/metrics.json as a table."""
    print_report(read_json(METRICS, "make the report with `dvc repro --force report`"), PAGE)


def targets_of(params: Params) -> dict[str, Target]:
    """Checkpoint -> what it was trained on, in table order.

    An entry may name its split and method.
    """
    entries = {
        name: Target(entry.axis, entry.split, entry.method)
        for name, entry in params.checkpoints.items()
    }
    axes = list(AXES)
    order = sorted(
        entries,
        key=lambda name: (
            axes.index(entries[name].axis),
            AXES[entries[name].axis].index(entries[name].cell),
        ),
    )
    # beside one another: checkpoints of one cell, in the order of params.yaml
    return {name: entries[name] for name in order}


def read_sources(params: Params, paths: dict[str, Path], kind: str | None) -> Sources:
    """Checked predictions of the base and each checkpoint in `paths`, on splits of one kind."""
    targets = {name: target for name, target in targets_of(params).items() if name in paths}
    predictions, origins = {}, {}
    for name in ["base", *targets]:
        path = paths[name]
        predictions[name], origins[name] = read_predictions(path, f"evaluate@{name}")
        axis, cell = (targets[name].axis, targets[name].cell) if name in targets else ("all", None)
        check_predictions(predictions[name], name, axis, str(path), cell)
        if name != "base":
            check_same_questions(predictions["base"], predictions[name], axis, str(path))
    told = origins["base"].get("params", {}).get("prompt", {}).get("style")
    style = told if told in get_args(Style) else params.prompt.style
    return Sources(params, targets, predictions, origins, check_same_kind(origins, kind), style)


def _gather(sources: Sources) -> gather.Evidence:
    """All numbers and what is shown beside them."""
    settings = sources.params.report
    metrics = compute_metrics(
        sources.predictions,
        sources.targets,
        settings.bootstrap_samples,
        settings.bootstrap_seed,
        blind_baselines=sources.blind_baselines,
        style=sources.style,
    )
    if any(
        entry["in_domain"]["visual"]["shuffled"] is None
        for entry in metrics["checkpoints"].values()
    ):
        sources.missing.append(
            "visual gain of at least one checkpoint (evaluate.ablations was off, or no image could"
            " be exchanged)"
        )
    facts = collect_provenance({"report": settings, "splits.kind": sources.kind or "not on record"})
    return gather.Evidence(
        metrics=metrics | {"splits": sources.used, "missing": sources.missing, "provenance": facts},
        tables=gather.make_tables(sources.predictions, sources.targets),
        logs=sources.logs,
        splits=sources.splits,
        quarantine=sources.quarantine,
        data_tests=sources.data_tests,
        cases=gather.pick_cases(sources.predictions, sources.targets, sources.problems),
        outputs=gather.outputs_of_signs(metrics, sources.predictions),
        origins=sources.origins,
        trained=sources.trained,
        synthetic=gather.synthetic_share(sources.predictions["base"]),
        missing=sources.missing,
    )


def write_report(sources: Sources, folder: Path) -> None:
    """Compute, then write all files of the report into `folder`."""
    evidence = _gather(sources)
    facts = {
        **evidence.metrics["provenance"],
        "predictions": [
            {"checkpoints": names, "provenance": origin}
            for names, origin in gather.group_origins(evidence.origins)
        ],
    }
    images = inline_images(case.image for case in evidence.cases)
    _write_figures(folder / "figures", evidence, sources.targets, facts)
    with atomic_directory(folder / "tables") as temporary:
        write_sheets(temporary, evidence)
        (temporary / "predictions").mkdir()
        for name, rows in sources.predictions.items():
            write_scored(temporary / "predictions" / f"{name}.parquet", rows, sources.origins[name])
    if evidence.logs:
        with atomic_file(folder / TRAINING.name) as temporary:
            write_training(temporary, evidence.logs)
    with atomic_directory(folder / "cards") as temporary:
        for name in sources.targets:
            (temporary / f"{name}.md").write_text(render_card(name, evidence), encoding="utf-8")
    for path, text in {
        folder / PAGE.name: render_page(evidence, images),
        folder / "report.md": render_report(evidence),
    }.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(folder / PROVENANCE.name, facts)
    write_json(folder / METRICS.name, evidence.metrics)
    write_json(folder / SUMMARY.name, _summary(evidence.metrics))
    print(f"report: {len(sources.targets)} checkpoints and the base -> {folder / PAGE.name}")
    if sources.missing:
        print(f"report: not in it: {'; '.join(sources.missing)}")


def _write_figures(
    folder: Path, evidence: gather.Evidence, targets: dict[str, Target], facts: dict[str, Any]
) -> None:
    with atomic_directory(folder) as temporary:
        for axis, tables in evidence.tables.items():
            by = CELLS[axis].replace("_", " ")
            save_heatmap(temporary / f"{axis}.png", tables.accuracy, f"Accuracy (%) by {by}", facts)
            save_heatmap(
                temporary / f"to_base_{axis}.png",
                tables.to_base,
                f"Accuracy less the base's (points) by {by}",
                facts,
            )
            if tables.visual_gain.there:
                title = f"Accuracy less that with an exchanged image (points) by {by}"
                save_heatmap(
                    temporary / f"visual_gain_{axis}.png", tables.visual_gain, title, facts
                )
        if evidence.logs:
            save_training(
                temporary / "training.png",
                evidence.logs,
                {name: targets[name].axis for name in evidence.logs},
                facts,
            )


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    own = {name: entry["in_domain"] for name, entry in metrics["checkpoints"].items()}
    facts = metrics["provenance"]
    return {
        **{name: value for name, value in metrics["summary"].items() if name != "intervals"},
        "gain": {name: entry["gain"] for name, entry in own.items()},
        "git_commit": facts["git_commit"],
        "corpus": facts["corpus"],
    }
