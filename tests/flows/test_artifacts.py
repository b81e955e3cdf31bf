"""Artifacts at the end of a run: the numbers of the report, as the dashboard shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.prefect_api import artifacts
from flows.scheduling.schedule import StageResult
from stages.core import layout
from stages.reporting.parts import gains_over_base, mean_gains, part_gains
from stages.scoring.contributions import contributions
from stages.scoring.tables import Target
from tests.comparison.test_parts import FIRST
from tests.omnimedvqa import AXES

TARGETS = {slug: Target("modality", slug) for slug in AXES["modality"]}


def metrics(*, parts: bool) -> dict[str, Any]:
    own = {
        "n": 9,
        "base": 0.5,
        "accuracy": 0.7,
        "gain": 0.2,
        "low": 0.1,
        "high": 0.3,
        "blind_baseline": None,
        "visual": {"shuffled": None},
    }
    found: dict[str, Any] = {
        "checkpoints": {name: {"axis": "modality", "in_domain": own} for name in TARGETS}
    }
    if parts:
        found["contributions"] = contributions(FIRST, TARGETS, list(TARGETS), 200, 3)
    return found


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Key of an artifact -> what was published under it."""
    found: dict[str, str] = {}

    def create(content: str, *, key: str, **_: object) -> None:
        found[key] = content

    for kind in ("markdown", "image", "link"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", create)
    return found


def publish(root: Path, content: dict[str, Any]) -> None:
    path = root / layout.REPORT / "metrics.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content), encoding="utf-8")
    artifacts.publish(root, [StageResult("report", "ran", 1.0, "")], {})


def test_what_parts_were_worth_is_published_with_intervals(
    tmp_path: Path, published: dict[str, str]
) -> None:
    content = metrics(parts=True)
    publish(tmp_path, content)
    assert set(published) == {"stages", "results", "parts", "report"}
    lines = [line for line in published["parts"].splitlines() if line.startswith("|")]
    found = content["contributions"]
    sheets = [
        mean_gains(found),
        part_gains(found, content["checkpoints"]),
        gains_over_base(found, content["checkpoints"]),
    ]
    assert len(lines) == sum(len(sheet.rows) + 2 for sheet in sheets)
    gain = found["checkpoints"]["ct"]["context"]["parts"]["no_context"]
    (line,) = (line for line in lines if line.startswith("| ct | context | without context |"))
    assert f"{100 * gain['gain']:+.1f} [{100 * gain['low']:+.1f}" in line


def test_plain_questions_have_no_such_artifact(tmp_path: Path, published: dict[str, str]) -> None:
    publish(tmp_path, metrics(parts=False))
    assert set(published) == {"stages", "results", "report"}
    assert "| +20.0 | +10.0 to +30.0 |" in published["results"]
