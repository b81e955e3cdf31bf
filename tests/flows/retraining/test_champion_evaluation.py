"""A champion asked the workspace's questions: by the real stage evaluate, on the embedded base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from flows.dvc_api.client import StageError, StoppedError
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


def test_the_champion_answers_as_the_stage_would_and_the_workspace_stays(root: Path) -> None:
    run("python", "-m", "stages.evaluate", "ct", cwd=root)
    own = pq.read_table(root / layout.predictions("ct")).to_pandas()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    duel = ChampionEvaluation(root)
    shutil.copytree(root / layout.BASE_MODEL, duel.weights("ct"))
    said: list[str] = []
    answers = pq.read_table(duel.answer("ct", said.append)).to_pandas()
    pd.testing.assert_frame_equal(answers, own)
    assert any("48 questions answered -> predictions/ct.parquet" in line for line in said)
    duel.clear()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def test_what_goes_wrong_is_named(root: Path) -> None:
    duel = ChampionEvaluation(root)
    with pytest.raises(
        InputError, match=r"models/mri is missing: fetch the champion's weights first"
    ):
        duel.answer("mri", print)
    duel.weights("mri").mkdir(parents=True)
    with pytest.raises(StageError, match="champion@mri failed"):
        duel.answer("mri", print)
    duel.weights("fundus").mkdir(parents=True)
    with pytest.raises(
        InputError, match="dvc.lock has no evaluate@fundus: run `dvc repro evaluate@fundus`"
    ):
        duel.answer("fundus", print)
    duel.stop()
    with pytest.raises(StoppedError, match="champion@mri was stopped"):
        duel.answer("mri", print)
