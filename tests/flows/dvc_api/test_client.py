"""DVC's command line: stale stages, and the outcome of a stage that was run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.dvc_api.client import (
    RECORDS,
    DvcEvent,
    Runner,
    StageError,
    StoppedError,
    dvc,
    end_processes,
    explain,
    find_orphans,
    processes_of,
    read_event,
    read_status,
)
from stages.core.errors import ExitCode, InputError
from stages.core.outcome import StageOutcome, outcome_path
from tests.flows.tiny import ENVIRONMENT, locked, make_workspace, run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "workspace", ["a", "b"])


def test_status_lists_stale_stages_with_reasons(root: Path) -> None:
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


def test_a_stage_is_run_unchanged_or_restored_from_the_run_cache(root: Path) -> None:
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
    runner.run("split", print)
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
    runner.run("split", print)
    (root / "fail" / "a").write_text(str(int(code)), encoding="utf-8")
    with pytest.raises(StageError) as caught:
        runner.run("train@a", print)
    assert caught.value.code == code


def test_the_exit_code_of_an_earlier_run_is_ignored(root: Path) -> None:
    runner = Runner(root)
    runner.run("split", print)
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


def test_the_installed_dvc_prints_the_event_of_a_locked_path(root: Path) -> None:
    runner = Runner(root)
    runner.run("split", print)
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    rwlock = {"write": {str(root / "models" / "a.txt"): holder}, "read": {}}
    (root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(rwlock), encoding="utf-8")
    lines: list[str] = []
    with pytest.raises(StageError, match="med-r1 doctor") as caught:
        runner.run("train@a", lines.append)
    assert (caught.value.code, caught.value.began) == (None, False)
    assert DvcEvent.LOCKED in map(read_event, lines)


def test_the_installed_dvc_prints_the_event_of_a_locked_repository(
    root: Path,
) -> None:
    run("dvc", "repro", "-s", "split", cwd=root)
    with (root / ".dvc" / "tmp" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = run("dvc", "repro", "-s", "train@a", cwd=root, code=255)
    assert DvcEvent.LOCKED in map(read_event, output.splitlines())


def test_the_installed_dvc_prints_the_event_of_a_full_disk(root: Path) -> None:
    text = f"""
from unittest.mock import patch
from dvc.cli import main
with patch("dvc.stage.Stage.save", side_effect=OSError({errno.ENOSPC}, "no word of it")):
    raise SystemExit(main(["repro", "-s", "split"]))
"""
    process = subprocess.run(
        [sys.executable, "-c", text], cwd=root, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert process.returncode == 255
    events = {read_event(line) for line in (process.stdout + process.stderr).splitlines()}
    assert {DvcEvent.BEGAN, DvcEvent.DISK_FULL} <= events


def test_output_of_a_stage_is_not_an_event() -> None:
    for line in (
        "error: No space left on device",
        "Unable to acquire lock",
        "it didn't change, skipping",
        "step 1 of 2",
    ):
        assert read_event(line) is None


@pytest.mark.parametrize(
    ("outcome", "events", "cause"),
    [
        (None, {DvcEvent.LOCKED}, "med-r1 doctor"),
        (StageOutcome(ExitCode.DONE), {DvcEvent.BEGAN, DvcEvent.DISK_FULL}, "dvc gc --workspace"),
        (StageOutcome(ExitCode.KILLED), {DvcEvent.BEGAN}, "killed from outside"),
        (
            StageOutcome(ExitCode.CRASHED, "ZeroDivisionError: by zero"),
            {DvcEvent.BEGAN},
            "ZeroDivisionError",
        ),
        (
            StageOutcome(ExitCode.DISK_FULL, "/scratch is full"),
            {DvcEvent.BEGAN, DvcEvent.LOCKED},
            "/scratch is full",
        ),
        (None, set(), "see the lines below"),
    ],
)
def test_the_outcome_of_a_stage_takes_precedence_over_events_of_dvc(
    outcome: StageOutcome | None, events: set[DvcEvent], cause: str
) -> None:
    message = explain("train@a", 255, outcome, events, ["> x", "the last line"])
    assert cause in message.splitlines()[0]
    assert message.endswith("the last line")


def test_stop_ends_running_stages_and_prevents_new_ones(root: Path) -> None:
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
    assert run("dvc", "repro", "--dry", "split", cwd=root), "no lock remains"


def test_a_stage_is_ended_if_reporting_its_output_fails(root: Path) -> None:
    runner = Runner(root)
    runner.run("split", print)
    (root / "hold" / "a").touch()

    def fail(line: str) -> None:
        if "step 1" in line:
            raise ConnectionError("no response")

    with pytest.raises(ConnectionError):
        runner.run("train@a", fail)
    assert not processes_of((root / RECORDS / "train@a.pid").resolve())


def test_orphaned_processes_are_found_and_ended(root: Path) -> None:
    record = (root / RECORDS / "train@a.pid").resolve()
    orphan = subprocess.Popen(
        ["sleep", "300"], env={"FLOW_RECORD": str(record), "PATH": "/usr/bin:/bin"}
    )
    deadline = time.monotonic() + 10
    while not find_orphans(root) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [(process.pid, path) for process, path in find_orphans(root)] == [
        (orphan.pid, str(record))
    ]
    end_processes([psutil.Process(orphan.pid)])
    assert not psutil.pid_exists(orphan.pid)
    assert find_orphans(root) == []


def test_a_failed_dvc_command_is_named_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"`dvc --wait-for-lock status --json` failed with exit code \d+: .*not inside of a DVC"
            r" repository"
        ),
    ):
        dvc(tmp_path, "status", "--json")
