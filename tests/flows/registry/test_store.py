"""Objects by hash from DVC's cache and remote, after the workspace has replaced them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from flows.registry.store import CachedObject, add, fetch, missing, outputs, push
from stages.core.errors import InputError
from stages.core.yaml_files import dump_yaml
from tests.flows.tiny import copy_folder, init_repository, run

STAGE = {
    "stages": {
        "train": {
            "cmd": "mkdir -p model && cat word.txt > model/weights && echo b > model/b",
            "deps": ["word.txt"],
            "outs": ["model"],
        }
    }
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose one stage has written a model."""
    root = tmp_path_factory.mktemp("trained")
    (root / "dvc.yaml").write_text(dump_yaml(STAGE), encoding="utf-8")
    init_repository(root)
    (root / "word.txt").write_text("first", encoding="utf-8")
    run("dvc", "repro", cwd=root)
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    return copy_folder(trained, tmp_path / "workspace")


@pytest.fixture(scope="module")
def trained_again(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after another training, on another word."""
    root = copy_folder(trained, tmp_path_factory.mktemp("again") / "workspace")
    (root / "word.txt").write_text("second", encoding="utf-8")
    run("dvc", "repro", cwd=root)
    assert outputs(root)["model"] != outputs(trained)["model"]
    return root


@pytest.fixture
def changed(trained_again: Path, tmp_path: Path) -> Path:
    return copy_folder(trained_again, tmp_path / "workspace")


@pytest.fixture
def model(trained: Path) -> CachedObject:
    """The model before the other training."""
    return outputs(trained)["model"]


def add_remote(root: Path) -> None:
    # DVC resolves the relative path from the folder of its configuration
    text = "[core]\nremote = store\n['remote \"store\"']\nurl = ../../remote\n"
    (root / ".dvc" / "config").write_text(text, encoding="utf-8")


def test_a_replaced_output_is_restored_without_changing_the_workspace(
    changed: Path, model: CachedObject, tmp_path: Path
) -> None:
    root = changed
    before = run("git", "status", "--porcelain", "--ignored", cwd=root)
    fetch(root, model, tmp_path / "old", "the model")
    assert {path.name: path.read_text() for path in (tmp_path / "old").iterdir()} == {
        "weights": "first",
        "b": "b\n",
    }
    assert (root / "model/weights").read_text() == "second"
    after = run("git", "status", "--porcelain", "--ignored", cwd=root)
    assert after.replace("?? .scratch/\n", "") == before
    assert not list((root / ".scratch/flows/store").iterdir())


def test_the_target_is_replaced_with_its_contents(root: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "other").touch()
    fetch(root, outputs(root)["model"], tmp_path / "old", "the model")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["b", "weights"]


def test_an_object_missing_from_the_cache_comes_from_the_remote(
    changed: Path, model: CachedObject, tmp_path: Path
) -> None:
    root = changed
    add_remote(root)
    assert missing(root, model) == 0
    assert push(root, [model])
    run("dvc", "gc", "--workspace", "--force", cwd=root)
    assert missing(root, model) == 2
    fetch(root, model, tmp_path / "old", "the model")
    assert (tmp_path / "old" / "weights").read_text() == "first"


def test_an_object_that_is_nowhere_is_named(
    changed: Path, model: CachedObject, tmp_path: Path
) -> None:
    root = changed
    run("dvc", "gc", "--workspace", "--force", cwd=root)
    assert not push(root, [model])
    with pytest.raises(InputError, match=rf"the model \({model.md5}\) .* no remote"):
        fetch(root, model, tmp_path / "old", "the model")
    add_remote(root)
    with pytest.raises(InputError, match=rf"the model \({model.md5}\) .* its remote"):
        fetch(root, model, tmp_path / "old", "the model")
    assert not (tmp_path / "old").exists()


def test_an_added_file_is_in_the_cache_and_the_remote(root: Path, tmp_path: Path) -> None:
    add_remote(root)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    manifest = add(root, tmp_path / "manifest.json")
    assert os.access(tmp_path / "manifest.json", os.W_OK), "the file is not a link into the cache"
    shutil.rmtree(root / ".dvc" / "cache")
    fetch(root, manifest, tmp_path / "again.json", "the manifest")
    assert (tmp_path / "again.json").read_text() == "{}"


def test_a_damaged_file_in_the_cache_is_not_taken_for_the_object(
    root: Path, tmp_path: Path
) -> None:
    add_remote(root)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    manifest = add(root, tmp_path / "manifest.json")
    path = root / ".dvc/cache/files/md5" / manifest.md5[:2] / manifest.md5[2:]
    path.chmod(0o644)
    path.write_text("{]", encoding="utf-8")
    with pytest.raises(InputError, match=rf"the manifest \({manifest.md5}\) .*{path}"):
        fetch(root, manifest, tmp_path / "again.json", "the manifest")
    assert not (tmp_path / "again.json").exists()
    path.unlink()
    fetch(root, manifest, tmp_path / "again.json", "the manifest")
    assert (tmp_path / "again.json").read_text() == "{}"


def test_settings_of_remotes_may_contain_any_characters(root: Path, tmp_path: Path) -> None:
    add_remote(root)
    run("dvc", "remote", "add", "--local", "other", "s3://bucket/folder", cwd=root)
    run("dvc", "remote", "modify", "--local", "other", "secret_access_key", "a#b,c\"d'e", cwd=root)
    assert push(root, [outputs(root)["model"]])
    assert list((tmp_path / "remote").rglob("*"))
