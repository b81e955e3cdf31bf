"""Prefect artifacts of a run: live progress, and at the end tables, heatmaps and the report."""

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
from stages.core.iteration.progress import read_progress
from stages.reporting.labels import label, percent, signed

EVERY: Final = 3.0
"""Seconds between two updates of an artifact."""
REPORT_URL: Final = "MED_R1_REPORT_URL"
"""Environment variable: where report/ is served, for the link in the dashboard."""


class Progress:
    """The progress artifact of one stage, fed from the lines it prints."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._last = 0.0

    def see(self, line: str) -> None:
        """Take note of a line; one that tells no progress changes nothing."""
        found = read_progress(line)
        if found is None or time.monotonic() - self._last < EVERY:
            return
        self._last = time.monotonic()
        note = f", {found.note}" if found.note else ""
        self._put(
            100 * found.done / found.total,
            f"{self._stage.name}: {found.unit} {found.done} of {found.total}{note}, {found.left} s"
            " to go",
        )

    def end(self) -> None:
        """The stage is done."""
        if self._artifact is not None:
            self._put(100.0, f"{self._stage.name}: done")

    def _put(self, share: float, words: str) -> None:
        try:
            if self._artifact is None:
                made = create_progress_artifact(
                    share, key=key_of("progress", self._stage.name), description=words
                )
                self._artifact = cast(UUID, made)
            else:
                update_progress_artifact(self._artifact, share, description=words)
        except (
            PrefectException,
            HTTPError,
        ) as error:  # a stage does not fail because nobody can watch it
            logging.getLogger(__name__).warning(
                "the progress of %s could not be shown: %r", self._stage.name, error
            )


def key_of(*parts: str) -> str:
    """An artifact's key, of lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def publish(root: Path, results: Sequence[StageResult], reasons: Mapping[str, str]) -> None:
    """Publish each stage's outcome and, if there is a report, its numbers, heatmaps and address.

    If the server cannot be reached that is logged, and nothing else: results do not depend on who
    sees them.
    """
    try:
        _publish(root, results, reasons)
    except (PrefectException, HTTPError) as error:
        logging.getLogger(__name__).warning("what came out could not be shown: %r", error)


def _publish(root: Path, results: Sequence[StageResult], reasons: Mapping[str, str]) -> None:
    create_markdown_artifact(
        stages_table(results, reasons), key="stages", description=count(results)
    )
    path = root / layout.REPORT / "metrics.json"
    if not path.is_file() or not any(
        result.name == "report" and result.state in ("ran", "cached") for result in results
    ):
        return
    create_markdown_artifact(
        results_table(json.loads(path.read_text(encoding="utf-8"))),
        key="results",
        description="Accuracy of each checkpoint",
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
    """Stages, how they ended and why they were run, as a markdown table."""
    rows = ["| stage | ended | seconds | why |", "|---|---|---:|---|"]
    for result in results:
        why = result.message.splitlines()[0] if result.message else reasons.get(result.name, "")
        rows.append(
            f"| {result.name} | {result.state} | {result.seconds:.1f} | {why.replace('|', '/')} |"
        )
    return "\n".join(rows)


def results_table(metrics: Mapping[str, Any]) -> str:
    """The in-domain numbers of report/metrics.json as a markdown table."""
    rows = [
        (
            "| checkpoint | n | base % | accuracy % | gain | 95% interval | blind baseline % |"
            " visual gain |"
        ),
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


def count(results: Sequence[StageResult]) -> str:
    """How many stages ended how: "31 ran, 8 unchanged, 1 failed"."""
    counted = Counter(result.state for result in results)
    return (
        ", ".join(f"{number} {state}" for state, number in counted.most_common())
        or "nothing was stale"
    )


def print_summary(results: Sequence[StageResult]) -> None:
    """How each stage ended, on a terminal."""
    table = Table(title=count(results), title_justify="left", box=None)
    for head in ("stage", "ended", "seconds"):
        table.add_column(head, justify="right" if head == "seconds" else "left")
    for result in results:
        table.add_row(result.name, result.state, f"{result.seconds:.1f}")
    Console().print(table)
