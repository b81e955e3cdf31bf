"""New data on trial, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dvc_api.client import read_status
from flows.registry import snapshot as trial
from flows.source.probe import update
from stages.core.yaml_files import dump_yaml
from tests.flows.tiny import run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with an imported corpus that stage download copies; it was never run."""
    (tmp_path / "corpus.zip").write_text("one")
    root = tmp_path / "workspace"
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data.dvc").write_text(
        "deps:\n- path: ../corpus.zip\nouts:\n- path: data/raw/corpus.zip\n", encoding="utf-8"
    )
    stage = {
        "cmd": "cp data/raw/corpus.zip data/corpus",
        "deps": ["data/raw/corpus.zip"],
        "outs": ["data/corpus"],
    }
    (root / "dvc.yaml").write_text(dump_yaml({"stages": {"download": stage}}), encoding="utf-8")
    run("git", "init", "-q", cwd=root)
    run("dvc", "init", "-q", cwd=root)
    update(root)
    return root


def take_new(root: Path) -> None:
    (root.parent / "corpus.zip").write_text("two")
    trial.save(root)
    update(root)
    run("dvc", "repro", cwd=root)


def test_all_is_as_it_was_after_going_back(root: Path) -> None:
    run("dvc", "repro", cwd=root)
    before = {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".dvc/" not in str(path) and ".git/" not in str(path)
    }
    take_new(root)
    assert trial.on_trial(root)
    assert (root / "data/corpus").read_text() == "two"
    assert trial.rollback(root) is None
    assert not trial.on_trial(root)
    assert {path: path.read_bytes() for path in before} == before
    assert read_status(root) == {}


def test_what_was_never_run_is_never_run_again(root: Path) -> None:
    take_new(root)
    assert trial.rollback(root) is None
    assert (root / "data/raw/corpus.zip").read_text() == "one"
    assert not (root / "dvc.lock").exists()


def test_what_the_cache_lost_is_told(root: Path) -> None:
    run("dvc", "repro", cwd=root)
    take_new(root)
    run("dvc", "gc", "--workspace", "--force", cwd=root)
    word = trial.rollback(root)
    assert word is not None
    assert "not all files of the corpus before could be brought back from DVC's cache" in word
    assert not trial.on_trial(root)


def test_good_data_stays(root: Path) -> None:
    take_new(root)
    trial.commit(root)
    assert not trial.on_trial(root)
    assert (root / "data/corpus").read_text() == "two"


def test_the_workspace_is_held_by_one_at_a_time(root: Path) -> None:
    refused = pytest.raises(
        trial.AlreadyRunningError, match=r"a retraining \(process \d+\) runs in"
    )
    with trial.only_retraining(root), refused, trial.only_retraining(root):
        pass
    with trial.only_retraining(root):
        pass
