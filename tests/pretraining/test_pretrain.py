"""The recipe at small size: it trains, logs, saves, and is reproducible bit for bit."""

from pathlib import Path

import pytest

from stages.pretraining import pretrain
from stages.pretraining.pretrain import Recipe, run

SMALL = Recipe(images=8, read_steps=3, see_steps=2, answer_steps=2, batch=4, log_every=1)


def test_two_runs_of_the_recipe_give_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_EXAM_QUESTIONS", 20)
    monkeypatch.setattr(pretrain, "_EXAM_BATCH", 16)
    lines: list[str] = []
    weights = []
    for name in ("first", "second"):
        run(SMALL, tmp_path / name, progress=lines.append)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    log = (tmp_path / "first" / "pretraining.csv").read_text(encoding="utf-8").splitlines()
    assert log[0] == "lesson,step,loss,right,exam,minutes"
    assert len(log) == 1 + 3 + 2 + 2 + 1
