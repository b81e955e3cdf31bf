"""Champions evaluated on the workspace's questions by the real stage, on the embedded base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from flows.dvc_api.runner import StageError, StoppedError
from flows.retraining.champion_evaluation import ChampionEvaluation
from stages.core import layout
from stages.core.errors import InputError
from stages.core.yaml_files import dump_yaml
from tests.flows.tiny import run
from tests.workspaces import small_workspace


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the base as checkpoint ct."""
    root = tmp_path_factory.mktemp("workspace")
    small_workspace(root, images_a_modality=1)
    shutil.copytree(root / layout.BASE_MODEL, root / layout.model("ct"))
    locked = {
        "stages": {
            "evaluate@ct": {"cmd": "python -m stages.evaluate ct"},
            "evaluate@mri": {"cmd": "false"},
        }
    }
    (root / "dvc.lock").write_text(dump_yaml(locked), encoding="utf-8")
    return root


def modification_times(root: Path) -> dict[Path, int]:
    """Of all files but the cached answers, where the time says when they were last used."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        path: path.stat().st_mtime_ns
        for path in files
        if not path.is_relative_to(root / layout.ANSWER_CACHE)
    }


def test_champions_are_evaluated_as_by_the_stage_without_changing_the_workspace(root: Path) -> None:
    run("python", "-m", "stages.evaluate", "ct", cwd=root)
    expected = pq.read_table(root / layout.predictions("ct")).to_pandas()
    before = modification_times(root)
    evaluation = ChampionEvaluation(root)
    shutil.copytree(root / layout.BASE_MODEL, evaluation.weights("ct"))
    lines: list[str] = []
    predictions = pq.read_table(evaluation.evaluate("ct", lines.append)).to_pandas()
    pd.testing.assert_frame_equal(predictions, expected)
    assert any("96 of 96 answers are in .scratch/answers" in line for line in lines)
    assert any("48 questions" in line and "predictions/ct.parquet" in line for line in lines)
    evaluation.clear()
    assert modification_times(root) == before


def test_errors_name_the_checkpoint(root: Path) -> None:
    evaluation = ChampionEvaluation(root)
    with pytest.raises(InputError, match="models/mri is missing"):
        evaluation.evaluate("mri", print)
    evaluation.weights("mri").mkdir(parents=True)
    with pytest.raises(StageError, match="champion@mri failed"):
        evaluation.evaluate("mri", print)
    evaluation.weights("fundus").mkdir(parents=True)
    with pytest.raises(InputError, match="dvc.lock .*`dvc repro evaluate@fundus`"):
        evaluation.evaluate("fundus", print)
    evaluation.stop()
    with pytest.raises(StoppedError, match="champion@mri was stopped"):
        evaluation.evaluate("mri", print)
