"""Objects by hash from DVC's cache and remote after the workspace has forgotten them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from flows.registry.store import CachedObject, fetch, keep, missing, outputs, push
from stages.core.errors import InputError
from stages.core.yaml_files import dump_yaml
from tests.flows.tiny import run

STAGE = {
    "stages": {
        "train": {
            "cmd": "mkdir -p model && cat word.txt > model/weights && echo b > model/b",
            "deps": ["word.txt"],
            "outs": ["model"],
        }
    }
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace that has made one model, and then another."""
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "dvc.yaml").write_text(dump_yaml(STAGE), encoding="utf-8")
    run("git", "init", "-q", cwd=root)
    run("dvc", "init", "-q", cwd=root)
    (root / "word.txt").write_text("first", encoding="utf-8")
    run("dvc", "repro", cwd=root)
    return root


def replaced(root: Path) -> CachedObject:
    """What the model was, now that it is another."""
    model = outputs(root)["model"]
    (root / "word.txt").write_text("second", encoding="utf-8")
    run("dvc", "repro", cwd=root)
    assert outputs(root)["model"] != model
    return model


def with_remote(root: Path) -> None:
    # relative, as DVC writes it: to the folder of its own configuration
    run("dvc", "remote", "add", "-d", "store", "../remote", cwd=root)


def test_an_output_that_was_replaced_can_be_had_and_the_workspace_stays(
    root: Path, tmp_path: Path
) -> None:
    model = replaced(root)
    before = run("git", "status", "--porcelain", "--ignored", cwd=root)
    fetch(root, model, tmp_path / "old", "the model")
    assert {path.name: path.read_text() for path in (tmp_path / "old").iterdir()} == {
        "weights": "first",
        "b": "b\n",
    }
    assert (root / "model/weights").read_text() == "second"
    assert (
        run("git", "status", "--porcelain", "--ignored", cwd=root).replace("?? .scratch/\n", "")
        == before
    )
    assert not list((root / ".scratch/flows/store").iterdir())


def test_what_was_at_the_target_is_replaced_whole(root: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "other").touch()
    fetch(root, outputs(root)["model"], tmp_path / "old", "the model")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["b", "weights"]


def test_what_the_cache_lost_comes_from_the_remote(root: Path, tmp_path: Path) -> None:
    with_remote(root)
    model = replaced(root)
    assert missing(root, model) == 0
    assert push(root, {"model": model})
    run("dvc", "gc", "--workspace", "--force", cwd=root)
    assert missing(root, model) == 2
    fetch(root, model, tmp_path / "old", "the model")
    assert (tmp_path / "old" / "weights").read_text() == "first"


def test_what_is_nowhere_is_named(root: Path, tmp_path: Path) -> None:
    model = replaced(root)
    run("dvc", "gc", "--workspace", "--force", cwd=root)
    assert not push(root, {"model": model})
    with pytest.raises(
        InputError,
        match=rf"the model \({model.md5}\) is not in DVC's cache any more, and there is no remote",
    ):
        fetch(root, model, tmp_path / "old", "the model")
    with_remote(root)
    with pytest.raises(InputError, match="is complete neither in DVC's cache nor in its remote"):
        fetch(root, model, tmp_path / "old", "the model")
    assert not (tmp_path / "old").exists()


def test_a_file_put_into_the_cache_is_in_the_remote_too(root: Path, tmp_path: Path) -> None:
    with_remote(root)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    kept = keep(root, tmp_path / "manifest.json")
    assert os.access(tmp_path / "manifest.json", os.W_OK), (
        "the file itself is no link into the cache"
    )
    shutil.rmtree(root / ".dvc" / "cache")
    fetch(root, kept, tmp_path / "again.json", "the manifest")
    assert (tmp_path / "again.json").read_text() == "{}"


def test_settings_of_remotes_survive_whatever_signs_are_in_them(root: Path, tmp_path: Path) -> None:
    with_remote(root)
    run("dvc", "remote", "add", "--local", "other", "s3://bucket/folder", cwd=root)
    run("dvc", "remote", "modify", "--local", "other", "secret_access_key", "a#b,c\"d'e", cwd=root)
    assert push(root, {"model": outputs(root)["model"]})
    assert list((tmp_path / "remote").rglob("*"))
