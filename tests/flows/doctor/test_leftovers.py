"""Leftovers of killed runs are found, and removed without touching anything in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.doctor import leftovers
from flows.doctor.command import examine
from flows.dvc_api.processes import RECORDS, processes_of
from tests.flows.tiny import REPOSITORY

CHECKS = {
    "orphans": leftovers.orphaned_processes,
    "records": leftovers.records,
    "incomplete": leftovers.incomplete_outputs,
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder as a workspace; processes that a test started for it are killed at the end."""
    root = tmp_path.resolve()
    (root / RECORDS).mkdir(parents=True)
    yield root
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_ROOT") == str(root):
                process.kill()
        except psutil.Error:
            continue


def start(root: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        cwd=root,
        env=os.environ | {"TEST_ROOT": str(root)} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline()
    return process


def guarded(root: Path, stage: str) -> subprocess.Popen[str]:
    """Start a stage behind its guard, and wait for its record and its process."""
    guard = REPOSITORY / "flows" / "dvc_api" / "guard.py"
    record = root / RECORDS / f"{stage}.pid"
    process = start(
        root,
        sys.executable,
        "-I",
        "-S",
        str(guard),
        str(record),
        "sh",
        "-c",
        "echo up; sleep 300; true",
    )
    deadline = time.monotonic() + 30
    while (
        not (record.exists() and record.read_text(encoding="utf-8").strip())
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    while not any(
        each.name() == "sleep" for each in psutil.Process(process.pid).children(recursive=True)
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def levels(root: Path) -> dict[str, str]:
    return {each.finding.check: each.finding.level for each in examine(root, checks=CHECKS)}


def test_a_healthy_workspace_has_no_leftovers(root: Path) -> None:
    assert levels(root) == {"orphans": "ok", "records": "ok", "incomplete outputs": "ok"}


def test_a_running_stage_and_its_record_are_left_alone(root: Path) -> None:
    process = guarded(root, "train@a")
    assert (root / RECORDS / "train@a.pid").exists()
    assert levels(root) == {"orphans": "ok", "records": "ok", "incomplete outputs": "ok"}
    examine(root, fix=True, checks=CHECKS)
    assert process.poll() is None
    assert (root / RECORDS / "train@a.pid").exists()


def test_processes_of_a_killed_guard_are_ended_and_its_record_removed(root: Path) -> None:
    process = guarded(root, "train@a")
    stage = psutil.Process(process.pid).children(recursive=True)
    assert stage
    process.send_signal(signal.SIGKILL)
    process.wait()
    orphans = next(
        each.finding for each in examine(root, checks=CHECKS) if each.finding.check == "orphans"
    )
    assert orphans.level == "problem"
    assert orphans.what.startswith(f"train@a: {min(each.pid for each in stage)} ")
    fixes = {each.finding.check: each.fix_result for each in examine(root, fix=True, checks=CHECKS)}
    assert all(str(each.pid) in fixes["orphans"] for each in stage)
    assert fixes["records"] == f"removed {RECORDS}/train@a.pid"
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in stage)
    assert levels(root) == {"orphans": "ok", "records": "ok", "incomplete outputs": "ok"}


def test_processes_started_while_a_stage_is_being_ended_are_ended_too(root: Path) -> None:
    record = (root / RECORDS / "train@a.pid").resolve()
    start(
        root,
        "sh",
        "-c",
        "trap 'sleep 300 & exit' INT; echo up; while true; do sleep 0.1; done",
        FLOW_RECORD=str(record),
    )
    record.touch()
    assert levels(root)["orphans"] == "problem"
    examine(root, fix=True, checks=CHECKS)
    assert not processes_of(record)
    assert not record.exists()


def test_processes_of_other_workspaces_are_left_alone(root: Path, tmp_path: Path) -> None:
    other = str(tmp_path / "other" / RECORDS / "train@a.pid")
    process = start(root, "sh", "-c", "echo up; exec sleep 300", FLOW_RECORD=other)
    assert levels(root)["orphans"] == "ok"
    examine(root, fix=True, checks=CHECKS)
    assert process.poll() is None


def test_only_temporary_servers_of_killed_flows_are_ended(
    root: Path,
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    command = ("sh", "-c", "echo up; exec sleep 300")
    orphaned, used = (
        start(root, *command, PREFECT__SERVER_EPHEMERAL="1", FLOW_SERVER_OWNER=str(owner))
        for owner in (dead.pid, os.getpid())
    )
    (diagnosis,) = examine(root, fix=True, checks={"servers": leftovers.temporary_servers})
    assert diagnosis.finding.level == "warning"
    assert str(orphaned.pid) in diagnosis.finding.what
    assert str(used.pid) not in diagnosis.finding.what
    assert orphaned.wait(timeout=30) is not None
    assert used.poll() is None


def test_half_written_outputs_are_removed_and_nothing_else(root: Path) -> None:
    folder = root / "models" / ".ct.incomplete"
    file = root / "predictions" / ".ct.parquet.incomplete"
    others = [
        root / "models" / "ct" / "weights",
        root / "data" / "incomplete",
        root / ".git" / ".x.incomplete",
        root / "x.incomplete",
    ]
    for path in [folder / "deep" / "weights", file, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half", encoding="utf-8")
    (diagnosis,) = examine(root, fix=True, checks={"incomplete": leftovers.incomplete_outputs})
    assert diagnosis.finding.level == "warning"
    assert (
        diagnosis.fix_result == "removed models/.ct.incomplete, predictions/.ct.parquet.incomplete"
    )
    assert not folder.exists()
    assert not file.exists()
    assert all(path.exists() for path in others)


def test_abandoned_copies_in_the_cache_of_dvc_are_removed(root: Path) -> None:
    cache = root / ".dvc" / "cache" / "files" / "md5"
    abandoned = cache / "80" / ".V3Qp2Q7l5mXE.tmp"
    recent = cache / ".L8teTgr6.tmp"
    complete = cache / "80" / "cea60a291192a5"
    for path in (abandoned, recent, complete):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half", encoding="utf-8")
    for path in (abandoned, complete):
        os.utime(path, (0, 0))
    (diagnosis,) = examine(root, fix=True, checks={"incomplete": leftovers.incomplete_outputs})
    assert diagnosis.fix_result == "removed .dvc/cache/files/md5/80/.V3Qp2Q7l5mXE.tmp"
    assert (abandoned.exists(), recent.exists(), complete.exists()) == (False, True, True)


@pytest.mark.parametrize("by_dvc", [True, False])
def test_an_output_that_a_process_may_be_writing_is_left_alone(root: Path, by_dvc: bool) -> None:
    (root / "models" / ".ct.incomplete").mkdir(parents=True)
    process = start(
        root,
        "sh",
        "-c",
        "echo up; sleep 300; true",
        "stages.train" if not by_dvc else "x",
        **({"DVC_ROOT": str(root)} if by_dvc else {}),
    )
    (diagnosis,) = examine(root, fix=True, checks={"incomplete": leftovers.incomplete_outputs})
    assert diagnosis.finding.level == "ok"
    assert str(process.pid) in diagnosis.finding.what
    assert (root / "models" / ".ct.incomplete").exists()
