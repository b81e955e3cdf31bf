"""DVC's command line: what is stale, and what a stage's end means."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.dvc_api.client import RECORDS, Runner, StageError, StoppedError, dvc, end_processes, explain, orphans, processes_of, read_status
from stages.core.errors import InputError
from tests.flows.tiny import locked, make_workspace, run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "workspace", ["a", "b"])


def test_what_is_stale_is_told_with_its_reasons(root: Path) -> None:
    run("dvc", "repro", cwd=root)
    assert read_status(root) == {}
    (root / "params.yaml").write_text("rate: 2\n", encoding="utf-8")
    (root / "predictions" / "b.txt").unlink()
    assert read_status(root) == {
        "train@a": {"changed deps": {"params.yaml": {"rate": "modified"}}},
        "train@b": {"changed deps": {"params.yaml": {"rate": "modified"}}},
        "evaluate@b": {"changed outs": {"predictions/b.txt": "deleted"}},
        "report": {"changed deps": {"predictions": "modified"}},
    }


def test_a_stage_is_run_found_unchanged_or_taken_from_the_run_cache(root: Path) -> None:
    lines: list[str] = []
    runner = Runner(root)
    assert runner.run("split", lines.append).how == "ran"
    assert runner.run("train@a", lines.append, extra={"CUDA_VISIBLE_DEVICES": "7"}).how == "ran"
    assert "a: step 1 of 2, reward 0.50, 1 s to go" in lines
    assert not [line for line in lines if "git add" in line], "advice for a person at a terminal"
    assert (root / "seen-models-a.log").read_text(encoding="utf-8") == "GPUs '7'\n"
    assert runner.run("train@a", lines.append).how == "unchanged"
    (root / "dvc.lock").unlink()
    (root / "models" / "a.txt").unlink()
    assert runner.run("train@a", lines.append).how == "cached"
    assert set(locked(root)) == {"train@a"}


def test_a_failure_gives_the_stages_own_reason(root: Path) -> None:
    runner = Runner(root)
    runner.run("split", print)
    (root / "fail" / "a").touch()
    with pytest.raises(StageError, match="^train@a failed: a has no luck\n"):
        runner.run("train@a", print)
    with pytest.raises(StageError, match="train@z failed"):
        runner.run("train@z", print)
    assert not list((root / RECORDS).iterdir())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ERROR: Unable to acquire lock.", "another DVC command holds a file it needs"),
        ("ERROR: unexpected error - [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: failed to run: x, exited with -9", "killed from outside"),
        ("Traceback (most recent call last):", "see the lines below"),
    ],
)
def test_what_dvc_says_is_put_into_words(line: str, told: str) -> None:
    assert told in explain("train@a", 255, ["> x", line]).splitlines()[0]
    assert explain("train@a", 255, ["> x", line]).endswith(line)


def test_stopping_ends_what_runs_and_lets_nothing_begin(root: Path) -> None:
    runner = Runner(root)
    runner.run("split", print)
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
    assert run("dvc", "repro", "--dry", "split", cwd=root), "no lock is left behind"


def test_whoever_fails_to_listen_does_not_leave_a_stage_unwatched(root: Path) -> None:
    runner = Runner(root)
    runner.run("split", print)
    (root / "hold" / "a").touch()

    def deaf(line: str) -> None:
        if "step 1" in line:
            raise ConnectionError("nobody answers")

    with pytest.raises(ConnectionError):
        runner.run("train@a", deaf)
    assert not processes_of((root / RECORDS / "train@a.pid").resolve())


def test_processes_whose_guard_is_gone_are_found_and_ended(root: Path) -> None:
    record = (root / RECORDS / "train@a.pid").resolve()
    left = subprocess.Popen(["sleep", "300"], env={"FLOW_RECORD": str(record), "PATH": "/usr/bin:/bin"})
    deadline = time.monotonic() + 10
    while not orphans(root) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [(process.pid, path) for process, path in orphans(root)] == [(left.pid, str(record))]
    end_processes([psutil.Process(left.pid)])
    assert not psutil.pid_exists(left.pid)
    assert orphans(root) == []


def test_what_dvc_refuses_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"`dvc --wait-for-lock status --json` failed with exit code \d+: .*not inside of a DVC repository"
    ):
        dvc(tmp_path, "status", "--json")
