"""Prediction of the stages that DVC restores from its run cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.dvc_api.run_cache import restorable
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import copy_folder, run

TRAININGS = {"train@a", "train@b"}


@pytest.fixture(scope="module")
def twice_run(run_by_dvc: RunByDvc, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that was run with rate 1, then with rate 2."""
    root = copy_folder(run_by_dvc(("a", "b")), tmp_path_factory.mktemp("twice") / "workspace")
    (root / "params.yaml").write_text("rate: 2\n", encoding="utf-8")
    run("dvc", "repro", cwd=root)
    return root


@pytest.fixture
def root(twice_run: Path, tmp_path: Path) -> Path:
    return copy_folder(twice_run, tmp_path / "workspace")


def test_a_stage_that_ran_with_these_inputs_is_restorable_and_dvc_restores_it(root: Path) -> None:
    (root / "params.yaml").write_text("rate: 1\n", encoding="utf-8")
    assert restorable(root, TRAININGS) == TRAININGS
    output = run("dvc", "repro", cwd=root)
    assert "Stage 'train@a' is cached - skipping run" in output
    assert "Running stage 'train" not in output


def test_a_stage_with_new_inputs_is_not_restorable(root: Path) -> None:
    (root / "params.yaml").write_text("rate: 3\n", encoding="utf-8")
    assert restorable(root, TRAININGS) == set()


def test_a_deleted_output_is_restorable_unless_the_cache_is_deleted_too(root: Path) -> None:
    (root / "models" / "a.txt").unlink()
    assert restorable(root, {"train@a"}) == {"train@a"}
    shutil.rmtree(root / ".dvc" / "cache" / "files")
    assert restorable(root, {"train@a"}) == set()


def test_a_missing_input_is_not_an_error(root: Path) -> None:
    (root / "corpus.txt").unlink()
    assert restorable(root, {"split"}) == set()
