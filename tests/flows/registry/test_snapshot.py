"""Snapshots: validation of new data, commit and rollback."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dvc_api.client import read_status
from flows.registry import snapshot
from flows.source.probe import update
from stages.core.yaml_files import dump_yaml
from tests.flows.tiny import copy_folder, init_repository, run


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an imported corpus that stage download copies; it was never run."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "corpus.zip").write_text("one")
    root = folder / "workspace"
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
    init_repository(root)
    update(root)
    return root


@pytest.fixture
def root(imported: Path, tmp_path: Path) -> Path:
    return copy_folder(imported.parent, tmp_path / "copy") / imported.name


def fetch_new_data(root: Path) -> None:
    (root.parent / "corpus.zip").write_text("two")
    snapshot.save(root)
    update(root)
    run("dvc", "repro", cwd=root)


def test_rollback_restores_the_workspace(root: Path) -> None:
    run("dvc", "repro", cwd=root)
    before = {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".dvc/" not in str(path) and ".git/" not in str(path)
    }
    fetch_new_data(root)
    assert snapshot.exists(root)
    assert (root / "data/corpus").read_text() == "two"
    assert snapshot.rollback(root) is None
    assert not snapshot.exists(root)
    assert {path: path.read_bytes() for path in before} == before
    assert read_status(root) == {}


def test_rollback_removes_a_lock_file_that_did_not_exist(root: Path) -> None:
    fetch_new_data(root)
    assert snapshot.rollback(root) is None
    assert (root / "data/raw/corpus.zip").read_text() == "one"
    assert not (root / "dvc.lock").exists()


def test_rollback_reports_files_missing_from_the_cache(root: Path) -> None:
    run("dvc", "repro", cwd=root)
    fetch_new_data(root)
    run("dvc", "gc", "--workspace", "--force", cwd=root)
    message = snapshot.rollback(root)
    assert message is not None
    assert "`dvc repro download resize splits`" in message
    assert not snapshot.exists(root)


def test_commit_accepts_the_new_data(root: Path) -> None:
    fetch_new_data(root)
    snapshot.commit(root)
    assert not snapshot.exists(root)
    assert (root / "data/corpus").read_text() == "two"


def test_only_one_retraining_runs_in_a_workspace(root: Path) -> None:
    conflict = pytest.raises(snapshot.AlreadyRunningError, match=rf"process \d+.* {root}")
    with snapshot.champion_lock(root), conflict, snapshot.champion_lock(root):
        pass
    with snapshot.champion_lock(root):
        pass
