"""A worker's clones: exclusive, reused, with exactly the requested commit and inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dvc_api.graph import read_graph
from flows.workers.checkout import WORK, check_out, claim, clear_run_cache, pull_inputs, push_result
from flows.workers.remote_inputs import RemoteInputs, read_entries
from stages.core.errors import InputError
from tests.flows.tiny import add_remote, locked, make_workspace, run


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WORK, str(tmp_path / "work"))
    return tmp_path / "work"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace that was never run, with a folder as its DVC remote."""
    root = make_workspace(tmp_path / "workspace", ["a", "b"])
    (tmp_path / "remote").mkdir()
    add_remote(root, tmp_path / "remote")
    run("git", "commit", "-qam", "a remote", cwd=root)
    return root


def head(root: Path) -> str:
    return run("git", "rev-parse", "HEAD", cwd=root).strip()


def commit(root: Path) -> str:
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-qm", "a change", cwd=root)
    return head(root)


def test_a_clone_is_exclusive_and_reused(root: Path) -> None:
    with claim(str(root), "train@a") as first, claim(str(root), "train@b") as second:
        assert first.root != second.root
    with claim(str(root), "train@a") as again:
        assert again.root == first.root
    with claim(str(root.parent), "train@a") as other:
        assert other.root.parent != first.root.parent, "clones of different repositories do not mix"


def test_a_free_clone_with_unfinished_state_of_the_stage_is_preferred(root: Path) -> None:
    with claim(str(root), "train@a"), claim(str(root), "train@b") as second:
        (second.root / ".scratch" / "train" / "b").mkdir(parents=True)
    with claim(str(root), "train@b") as clone:
        assert clone.root == second.root
    with claim(str(root), "train@a") as clone:
        assert clone.root != second.root


def test_checking_out_a_commit_keeps_ignored_files(root: Path) -> None:
    earlier = head(root)
    (root / "params.yaml").write_text("rate: 2\n", encoding="utf-8")
    (root / "added.txt").write_text("new\n", encoding="utf-8")
    with claim(str(root), "train@a") as clone:
        check_out(clone, str(root), earlier)
        later = commit(root)
        (clone.root / "params.yaml").write_text("rate: 9\n", encoding="utf-8")
        (clone.root / ".scratch").mkdir()
        (clone.root / ".git" / "index.lock").touch()
        check_out(clone, str(root), later)
        assert (clone.root / "params.yaml").read_text(encoding="utf-8") == "rate: 2\n"
        check_out(clone, str(root), earlier)
        assert (clone.root / "params.yaml").read_text(encoding="utf-8") == "rate: 1\n"
        assert not (clone.root / "added.txt").exists()
        assert (clone.root / ".scratch").is_dir()
        with pytest.raises(InputError, match="no commit 0{40}"):
            check_out(clone, str(root), "0" * 40)
        with pytest.raises(InputError, match="'main' is not a full commit id"):
            check_out(clone, str(root), "main")


def test_a_stage_gets_exactly_its_inputs_without_leftovers(root: Path, tmp_path: Path) -> None:
    run("dvc", "repro", cwd=root)
    graph = read_graph(root)
    stage = graph.stages["report"]  # reads a folder that several stages write into
    with claim(str(root), "report") as clone:
        check_out(clone, str(root), head(root))
        inputs = RemoteInputs(root, graph).push(stage)
        assert sorted(inputs) == ["evaluate@a", "evaluate@b"]
        pull_inputs(clone, graph, stage, inputs)
        (clone.root / "predictions" / "old.txt").write_text(
            "of an earlier commit\n", encoding="utf-8"
        )
        (clone.root / "predictions" / "a.txt").unlink()
        pull_inputs(clone, graph, stage, inputs)
        files = (clone.root / "predictions").glob("*.txt")
        assert sorted(path.name for path in files) == ["a.txt", "b.txt"]
        clear_run_cache(clone)
        run("dvc", "repro", "-s", "report", cwd=clone.root)
        assert locked(clone.root)["report"] == locked(root)["report"]
        push_result(clone, "report")
        entries = (tmp_path / "remote").glob("**/runs/*/*/*")
        assert len([path for path in entries if path.is_file()]) == 1
        with pytest.raises(InputError, match="report needs evaluate@b"):
            pull_inputs(clone, graph, stage, {"evaluate@a": inputs["evaluate@a"]})


def test_an_input_that_never_ran_is_named_with_the_remedy(root: Path) -> None:
    run("dvc", "repro", "split", cwd=root)
    with pytest.raises(InputError, match="train@a .*dvc.lock.*`dvc repro train@a`"):
        read_entries(root, ["split", "train@a"])
