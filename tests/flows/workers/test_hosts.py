"""Two workers with their own clones, one git repository, DVC remote and server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.chaos import POOL, Services
from flows.dvc_api.graph import read_graph
from flows.workers.checkout import WORK
from flows.workers.remote_inputs import check
from stages.core.errors import ExitCode, InputError
from tests.commands import med_r1
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import add_remote, locked, make_workspace, run

KEYS = ("a", "b")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone of a bare repository, with a folder as its DVC remote, both committed."""
    origin = make_workspace(tmp_path / "origin", KEYS)
    (tmp_path / "remote").mkdir()
    add_remote(origin, tmp_path / "remote")
    run("git", "commit", "-qam", "a remote", cwd=origin)
    run("git", "clone", "-q", "--bare", str(origin), str(tmp_path / "bare"), cwd=tmp_path)
    run("git", "clone", "-q", str(tmp_path / "bare"), str(tmp_path / "workspace"), cwd=tmp_path)
    return tmp_path / "workspace"


def reproduce(root: Path, api: str, *arguments: str) -> int:
    """The exit code of `med-r1 workers` in a workspace."""
    with contextlib.chdir(root), temporary_settings({PREFECT_API_URL: api}):
        return med_r1("workers", "--deployment", f"run-stage-on-worker/{POOL}", *arguments)


def worker_runs(api: str) -> dict[str, str]:
    """Stage -> message of its run's state."""
    of_deployment = {"flows": {"name": {"any_": ["run-stage-on-worker"]}}}
    runs: list[dict[str, Any]] = httpx.post(f"{api}/flow_runs/filter", json=of_deployment).json()
    return {each["name"]: each["state"]["message"] for each in runs}


def test_two_workers_reproduce_the_results_of_dvc_and_run_all_gpu_stages(
    root: Path, tmp_path: Path, run_by_dvc: RunByDvc, prefect_server: str
) -> None:
    services = Services(
        tmp_path,
        "flows/workers/flow.py:run_stage_on_worker",
        [{WORK: str(tmp_path / host)} for host in ("one", "two")],
        api=prefect_server,
    )
    services.environment |= {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    try:
        services.start()
        assert reproduce(root, prefect_server) == 0
        runs = worker_runs(prefect_server)
        run("git", "clone", "-q", str(tmp_path / "bare"), str(tmp_path / "later"), cwd=tmp_path)
        assert reproduce(tmp_path / "later", prefect_server, "--only", "train@a") == 0
        assert worker_runs(prefect_server) == runs, "results of workers come from the remote"
    finally:
        services.stop()
    plain = locked(run_by_dvc(KEYS))
    assert locked(root) == plain
    assert locked(tmp_path / "later") == {name: plain[name] for name in ("split", "train@a")}
    assert run("dvc", "repro", cwd=root).strip().endswith("Data and pipelines are up to date.")
    assert sorted(runs) == ["evaluate@a", "evaluate@b", "train@a", "train@b"]
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert any(str(folder) in message for message in runs.values()), runs
    assert not list(root.glob("seen-*.log")), "a GPU stage ran where the flow runs"


def commit(root: Path, path: str, text: str) -> None:
    (root / path).write_text(text, encoding="utf-8")
    run("git", "add", path, cwd=root)
    run("git", "commit", "-qm", "a change", cwd=root)


def dirty(root: Path) -> None:
    (root / "params.yaml").write_text("rate: 2\n", encoding="utf-8")


def unpushed(root: Path) -> None:
    commit(root, "params.yaml", "rate: 2\n")


def remote(text: str) -> Callable[[Path], None]:
    def configure(root: Path) -> None:
        commit(root, ".dvc/config", text.format(folder=root))
        run("git", "push", "-q", cwd=root)

    return configure


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (dirty, r"\n   M params.yaml\n"),
        (unpushed, r"commit \w{12} .*/bare: `git push`"),
        (remote(""), r"\.dvc/config .*`dvc remote add --default"),
        (
            remote("[core]\nremote = far\n['remote \"far\"']\nurl = {folder}/not-mounted\n"),
            r"'far' .*/not-mounted is missing",
        ),
        (
            remote("[core]\nremote = far\n['remote \"far\"']\nurl = ../near\n"),
            r"'far' is \.\./near, a relative path",
        ),
        (
            remote("[core]\nremote = far\n['remote \"far\"']\nurl = http://127.0.0.1/dvc\n"),
            r"'far' .*run-cache",
        ),
    ],
    ids=["dirty", "unpushed", "no remote", "unreachable", "relative", "http"],
)
def test_unusable_code_or_remotes_are_refused_before_anything_is_sent(
    root: Path, spoil: Callable[[Path], None], error: str
) -> None:
    graph = read_graph(root)
    check(root, graph, ["train@a"], None)
    spoil(root)
    with pytest.raises(InputError, match=error):
        check(root, graph, ["train@a"], None)


def test_a_repository_that_cannot_be_cloned_or_contains_a_secret_is_refused(root: Path) -> None:
    graph = read_graph(root)
    with pytest.raises(InputError, match="workers cannot clone .*/nowhere"):
        check(root, graph, ["train@a"], str(root / "nowhere"))
    with pytest.raises(InputError, match="user or password") as error:
        check(root, graph, ["train@a"], "https://hidden@127.0.0.1/repository.git")
    assert "hidden" not in str(error.value)
    run("git", "remote", "remove", "origin", cwd=root)
    with pytest.raises(InputError, match="no git remote `origin`"):
        check(root, graph, ["train@a"], None)


def test_the_command_fails_without_a_server(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "PREFECT_API_URL" not in os.environ
    assert med_r1("workers") == ExitCode.INPUT
    assert "error: PREFECT_API_URL is not set" in capsys.readouterr().err
