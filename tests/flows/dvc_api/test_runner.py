"""Stages that are run: outcomes, failures, and stopping them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flows.dvc_api.processes import RECORDS, processes_of
from flows.dvc_api.runner import Runner, StageError, StoppedError
from stages.core.errors import ExitCode
from stages.core.outcome import outcome_path
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import copy_folder, locked, make_workspace, run


@pytest.fixture
def root(run_by_dvc: RunByDvc, tmp_path: Path) -> Path:
    """A workspace in which the first stage has run."""
    return copy_folder(run_by_dvc(("a", "b"), "split"), tmp_path / "workspace")


def test_a_stage_is_run_unchanged_or_restored_from_the_run_cache(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace", ["a", "b"])
    lines: list[str] = []
    runner = Runner(root)
    assert runner.run("split", lines.append).state == "ran"
    assert runner.run("train@a", lines.append, extra={"CUDA_VISIBLE_DEVICES": "7"}).state == "ran"
    assert "a: step 1 of 2, reward 0.50, 1 s to go" in lines
    assert not [line for line in lines if "git add" in line], "advice for a person at a terminal"
    assert (root / "seen-models-a.log").read_text(encoding="utf-8") == "GPUs '7'\n"
    assert runner.run("train@a", lines.append).state == "unchanged"
    (root / "dvc.lock").unlink()
    (root / "models" / "a.txt").unlink()
    assert runner.run("train@a", lines.append).state == "cached"
    assert set(locked(root)) == {"train@a"}


def test_a_failure_gives_the_stages_own_reason_and_code(root: Path) -> None:
    runner = Runner(root)
    (root / "fail" / "a").touch()
    with pytest.raises(StageError, match="^train@a failed: a has no luck\n") as caught:
        runner.run("train@a", print)
    assert (caught.value.code, caught.value.began) == (ExitCode.INPUT, True)
    with pytest.raises(StageError, match="train@z failed") as caught:
        runner.run("train@z", print)
    assert (caught.value.code, caught.value.began) == (None, False)
    assert not list((root / RECORDS).iterdir())


@pytest.mark.parametrize("code", [code for code in ExitCode if code])
def test_the_exit_code_of_a_stage_reaches_the_flow_although_dvc_has_its_own(
    code: ExitCode, root: Path
) -> None:
    runner = Runner(root)
    (root / "fail" / "a").write_text(str(int(code)), encoding="utf-8")
    with pytest.raises(StageError) as caught:
        runner.run("train@a", print)
    assert caught.value.code == code


def test_the_exit_code_of_an_earlier_run_is_ignored(root: Path) -> None:
    runner = Runner(root)
    (root / "fail" / "a").write_text(str(int(ExitCode.REFUSED_DATA)), encoding="utf-8")
    with pytest.raises(StageError):
        runner.run("train@a", print)
    (root / "fail.py").write_text(
        "raise SystemExit('another program, which writes no outcome')", encoding="utf-8"
    )
    with pytest.raises(StageError) as caught:
        runner.run("train@a", print)
    assert outcome_path(root, "train@a").is_file()
    assert caught.value.code is None


def test_stop_ends_running_stages_and_prevents_new_ones(root: Path) -> None:
    runner = Runner(root)
    (root / "hold" / "a").touch()
    began = threading.Event()

    def stop() -> None:
        began.wait(60)
        runner.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(StoppedError, match="train@a was stopped"):
        runner.run("train@a", lambda line: began.set() if "step 1" in line else None)
    thread.join()
    with pytest.raises(StoppedError):
        runner.run("train@b", print)
    assert set(locked(root)) == {"split"}
    assert run("dvc", "repro", "--dry", "split", cwd=root), "no lock remains"


def test_a_stage_is_ended_if_reporting_its_output_fails(root: Path) -> None:
    runner = Runner(root)
    (root / "hold" / "a").touch()

    def fail(line: str) -> None:
        if "step 1" in line:
            raise ConnectionError("no response")

    with pytest.raises(ConnectionError):
        runner.run("train@a", fail)
    assert not processes_of((root / RECORDS / "train@a.pid").resolve())
