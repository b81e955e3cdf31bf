"""The drafts benchmark: both ways learn from the same completions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import drafts
from tests.conftest import RunStage
from tests.workspaces import small_workspace


def test_both_ways_are_trained_in_turn_on_the_same_completions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: RunStage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    run(drafts, "--steps", "4", "--json", "out.json")
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["equal_rewards"] == 4
    assert result["drafted"] > 0.9
    assert result["forwards"]["drafted"] < result["forwards"]["step by step"]
    assert result["speedup"] > 0
    assert "equal rewards in 4 of 4 steps" in capsys.readouterr().out
