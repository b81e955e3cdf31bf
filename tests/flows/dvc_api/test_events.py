"""Events in the output of the installed DVC, and what explains a failure."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc_api.events import DvcEvent, explain, read_event
from flows.dvc_api.runner import Runner, StageError
from stages.core.errors import ExitCode
from stages.core.outcome import StageOutcome
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import ENVIRONMENT, copy_folder, make_workspace, run


@pytest.fixture
def root(run_by_dvc: RunByDvc, tmp_path: Path) -> Path:
    """A workspace in which the first stage has run."""
    return copy_folder(run_by_dvc(("a", "b"), "split"), tmp_path / "workspace")


def test_the_installed_dvc_prints_the_event_of_a_locked_path(root: Path) -> None:
    runner = Runner(root)
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
    with (root / ".dvc" / "tmp" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = run("dvc", "repro", "-s", "train@a", cwd=root, code=255)
    assert DvcEvent.LOCKED in map(read_event, output.splitlines())


def test_the_installed_dvc_prints_the_event_of_a_full_disk(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace", ["a", "b"])
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
