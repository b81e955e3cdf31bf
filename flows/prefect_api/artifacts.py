"""Prefect artifacts of a run: live progress; at its end tables, heatmaps and the report."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from rich.console import Console
from rich.table import Table

from flows.dvc_api.graph import Stage
from flows.scheduling.schedule import StageResult
from stages.core import layout
from stages.core.iteration.progress import Progress
from stages.reporting.labels import label, percent, signed
from stages.reporting.parts import gains_over_base, mean_gains, part_gains
from stages.reporting.tables import Sheet

UPDATE_SECONDS: Final = 10.0
"""Minimum time between two updates of a progress artifact."""
REPORT_URL: Final = "MED_R1_REPORT_URL"
"""Environment variable: URL at which report/ is served, for the link in the dashboard."""


class ProgressArtifact:
    """Progress artifact of one stage, updated with what the stage reports."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._last_update = -UPDATE_SECONDS

    def update(self, progress: Progress) -> None:
        """Set to the stage's progress, at most once every `UPDATE_SECONDS`."""
        if time.monotonic() - self._last_update < UPDATE_SECONDS:
            return
        self._last_update = time.monotonic()
        note = f", {progress.note}" if progress.note else ""
        self._publish(
            100 * progress.done / progress.total,
            f"{self._stage.name}: {progress.unit} {progress.done} of {progress.total}{note},"
            f" {progress.left} s to go",
        )

    def finish(self) -> None:
        """Set to 100%, if there was any progress."""
        if self._artifact is not None:
            self._publish(100.0, f"{self._stage.name}: done")

    def _publish(self, percentage: float, description: str) -> None:
        try:
            if self._artifact is None:
                key = key_of("progress", self._stage.name)
                created = create_progress_artifact(percentage, key=key, description=description)
                self._artifact = cast(UUID, created)
            else:
                update_progress_artifact(self._artifact, percentage, description=description)
        except (PrefectException, HTTPError) as error:  # no reason for the stage to fail
            logging.getLogger(__name__).warning(
                "the progress of %s could not be published: %r", self._stage.name, error
            )


def key_of(*parts: str) -> str:
    """Artifact key: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def publish(root: Path, results: Sequence[StageResult], reasons: Mapping[str, str]) -> None:
    """Publish each stage's outcome and, if the report is new, its numbers, heatmaps and address.

    An unreachable server is only logged: results do not depend on it.
    """
    try:
        _publish(root, results, reasons)
    except (PrefectException, HTTPError) as error:
        logging.getLogger(__name__).warning("results could not be published: %r", error)


def _publish(root: Path, results: Sequence[StageResult], reasons: Mapping[str, str]) -> None:
    create_markdown_artifact(
        stages_table(results, reasons), key="stages", description=count(results)
    )
    path = root / layout.REPORT / "metrics.json"
    states = {result.name: result.state for result in results}
    if not path.is_file() or states.get("report") not in ("ran", "cached"):
        return
    metrics = json.loads(path.read_text(encoding="utf-8"))
    create_markdown_artifact(
        results_table(metrics), key="results", description="Accuracy of each checkpoint"
    )
    if "contributions" in metrics:
        create_markdown_artifact(
            parts_tables(metrics),
            key="parts",
            description="What images, their number and order, and the context are worth",
        )
    for figure in sorted((root / layout.REPORT / "figures").glob("*.png")):
        address = "data:image/png;base64," + base64.b64encode(figure.read_bytes()).decode()
        create_image_artifact(
            address,
            key=key_of("figure", figure.stem),
            description=figure.stem.replace("-", " ").replace("_", " "),
        )
    page = root / layout.REPORT / "index.html"
    served = os.environ.get(REPORT_URL)
    link = f"{served.rstrip('/')}/index.html" if served else page.as_uri()
    create_link_artifact(link, link_text="The report", key="report", description=str(page))


def stages_table(results: Sequence[StageResult], reasons: Mapping[str, str]) -> str:
    """Markdown table of stages: outcome, duration and reason."""
    rows = ["| stage | ended | seconds | why |", "|---|---|---:|---|"]
    for result in results:
        why = result.message.splitlines()[0] if result.message else reasons.get(result.name, "")
        rows.append(
            f"| {result.name} | {result.state} | {result.seconds:.1f} | {why.replace('|', '/')} |"
        )
    return "\n".join(rows)


def results_table(metrics: Mapping[str, Any]) -> str:
    """Markdown table of the in-domain numbers in report/metrics.json."""
    rows = [
        "| checkpoint | n | base % | accuracy % | gain | 95% interval | blind baseline % |"
        + " visual gain |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for name, entry in metrics["checkpoints"].items():
        own = entry["in_domain"]
        interval = f"{signed(own['low'])} to {signed(own['high'])}"
        blind_baseline = own["blind_baseline"] and own["blind_baseline"]["accuracy"]
        visual = own["visual"]["shuffled"] and own["visual"]["shuffled"]["gain"]
        rows.append(
            f"| {label(name)} | {own['n']} | {percent(own['base'])} | {percent(own['accuracy'])} |"
            f" {signed(own['gain'])} | {interval} | {percent(blind_baseline)} | {signed(visual)} |"
        )
    return "\n".join(rows)


def parts_tables(metrics: Mapping[str, Any]) -> str:
    """Markdown tables of the contributions in report/metrics.json, as in the report."""
    contributions = metrics["contributions"]
    sheets = {
        "Means over checkpoints, in points": mean_gains(contributions),
        "As asked minus variant, on the own test questions that have it": part_gains(
            contributions, metrics["checkpoints"]
        ),
        "Over the base, asked the same": gains_over_base(contributions, metrics["checkpoints"]),
    }
    return "\n\n".join(
        f"{title}:\n\n{_table(sheet)}" for title, sheet in sheets.items() if sheet.rows
    )


def _table(sheet: Sheet) -> str:
    rows = [[column.name for column in sheet.columns], ["---"] * len(sheet.columns)]
    rows += [[cell.text for cell in row.cells] for row in sheet.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def count(results: Sequence[StageResult]) -> str:
    """Number of stages per outcome: "31 ran, 8 unchanged, 1 failed"."""
    states = Counter(result.state for result in results).most_common()
    return ", ".join(f"{number} {state}" for state, number in states) or "nothing was stale"


def print_summary(results: Sequence[StageResult]) -> None:
    """Print a table of each stage's outcome and duration."""
    table = Table(title=count(results), title_justify="left", box=None)
    for head in ("stage", "ended", "seconds"):
        table.add_column(head, justify="right" if head == "seconds" else "left")
    for result in results:
        table.add_row(result.name, result.state, f"{result.seconds:.1f}")
    Console().print(table)
