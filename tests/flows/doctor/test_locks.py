"""Locks of dead, stopped and working processes are distinguished; only dead ones are dropped."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.doctor import locks
from flows.doctor.command import examine
from flows.doctor.findings import Finding
from flows.doctor.processes import is_locked, lock_holders
from flows.scheduling.slots import Slots, host_folder
from stages.core import layout
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import REPOSITORY, copy_folder, run

HOLD = (
    "import fcntl, sys, time; handle = open(sys.argv[1], 'a'); fcntl.flock(handle, fcntl.LOCK_EX); "
    "print('held', flush=True); time.sleep(300)"
)
HARD_LINK = (
    "import os, sys; from dvc.lock import HardlinkLock; lock = HardlinkLock(sys.argv[1],"
    " tmp_dir=sys.argv[2]); lock.lock(); os._exit(9)"
)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def root(run_by_dvc: RunByDvc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace on a host with GPU slots of its own."""
    (tmp_path / "host").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "host"))
    monkeypatch.setattr(locks, "STAGE_START_SECONDS", 0.1)
    return copy_folder(run_by_dvc(("a",), "split"), tmp_path / "workspace")


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*command)`: start a process, wait for its first line, and kill it after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_process(*command: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options
        )
        processes.append(process)
        assert process.stdout
        assert process.stdout.readline()
        return process

    yield start_process
    for process in processes:
        process.kill()
        process.wait()


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def suspend(process: subprocess.Popen[str]) -> None:
    """Stop a process and wait until it has stopped."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def only(findings: list[Finding], check: str) -> Finding:
    (match,) = [finding for finding in findings if finding.check == check]
    return match


def write_path_locks(
    root: Path, write: dict[str, int], read: dict[str, list[int]] | None = None
) -> Path:
    content = {
        "write": {path: {"pid": pid, "cmd": f"dvc repro {pid}"} for path, pid in write.items()},
        "read": {
            path: [{"pid": pid, "cmd": f"dvc repro {pid}"} for pid in pids]
            for path, pids in (read or {}).items()
        },
    }
    path = root / locks.PATH_LOCKS
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_healthy_workspace_has_no_leaked_locks(root: Path) -> None:
    findings = [*locks.dvc_locks(root), *locks.flow_lock(root), *locks.slots(root)]
    assert [(finding.check, finding.level) for finding in findings] == [
        ("DVC lock", "ok"),
        ("DVC path locks", "ok"),
        ("flow lock", "ok"),
        ("slots", "ok"),
    ]


def test_path_locks_of_dead_processes_are_dropped_and_those_of_live_ones_remain(root: Path) -> None:
    dead = dead_pid()
    other = dead_pid()
    alive = os.getpid()
    path = write_path_locks(
        root,
        {"parts/a.txt": dead, "models": alive},
        {"corpus.txt": [other, alive], "work.sh": [dead]},
    )
    finding = only(locks.dvc_locks(root), "DVC path locks")
    assert finding.level == "warning"
    assert str(dead) in finding.what
    assert str(alive) not in finding.what
    assert finding.fix
    assert str(dead) in finding.fix()
    remaining = json.loads(path.read_text(encoding="utf-8"))
    assert (list(remaining["write"]), list(remaining["read"])) == (["models"], ["corpus.txt"])
    assert [entry["pid"] for entry in remaining["read"]["corpus.txt"]] == [alive]
    assert only(locks.dvc_locks(root), "DVC path locks").level == "ok"


def test_a_reused_process_id_blocks_dvc_until_it_is_dropped(root: Path, start: Start) -> None:
    pid = start("sh", "-c", "echo up; sleep 300").pid
    path = write_path_locks(root, {str(root / "models" / "a.txt"): pid})
    hour_ago = path.stat().st_mtime - 3600
    os.utime(path, (hour_ago, hour_ago))
    assert "is busy, it is being blocked by" in run(
        "dvc", "repro", "-s", "train@a", cwd=root, code=255
    )
    os.utime(path, (hour_ago, hour_ago))
    finding = only(locks.dvc_locks(root), "DVC path locks")
    assert (finding.level, str(pid) in finding.what) == ("problem", True)
    assert finding.fix
    finding.fix()
    run("dvc", "repro", "-s", "train@a", cwd=root)


@pytest.mark.parametrize(
    "broken",
    ["{", '{"write": {"a": {"pid": "x", "cmd": "y"}}}', '{"write": []}', '{"read": {"a": [{}]}}'],
)
def test_a_corrupt_list_of_path_locks_stops_dvc_until_it_is_set_aside(
    root: Path, broken: str
) -> None:
    path = root / locks.PATH_LOCKS
    path.write_text(broken, encoding="utf-8")
    run("dvc", "repro", "-s", "train@a", cwd=root, code=255)
    finding = only(locks.dvc_locks(root), "DVC path locks")
    assert finding.level == "problem"
    assert finding.fix
    finding.fix()
    assert path.with_name("rwlock.broken").read_text(encoding="utf-8") == broken
    run("dvc", "repro", "-s", "train@a", cwd=root)


def test_nothing_is_fixed_while_dvc_is_running(root: Path, start: Start) -> None:
    path = write_path_locks(root, {"models": dead_pid()})
    before = path.read_bytes()
    start(sys.executable, "-c", HOLD, str(root / locks.REPOSITORY_LOCK))
    diagnosis = examine(
        root,
        fix=True,
        checks={"locks": lambda root: [only(locks.dvc_locks(root), "DVC path locks")]},
    )[0]
    assert "DVC is running in" in diagnosis.fix_error
    assert not diagnosis.fix_result
    assert path.read_bytes() == before


def test_a_lock_in_use_is_ok_and_that_of_a_stopped_process_is_a_problem(
    root: Path, start: Start
) -> None:
    process = start(sys.executable, "-c", HOLD, str(root / locks.REPOSITORY_LOCK))
    finding = only(locks.dvc_locks(root), "DVC lock")
    assert (finding.level, str(process.pid) in finding.what) == ("ok", True)
    suspend(process)
    finding = only(locks.dvc_locks(root), "DVC lock")
    assert (finding.level, finding.fix) == ("problem", None)
    assert f"kill -CONT {process.pid}" in finding.remedy


def test_a_process_that_waits_for_a_lock_does_not_hold_it(root: Path, start: Start) -> None:
    process = start(sys.executable, "-c", HOLD, str(root / locks.REPOSITORY_LOCK))
    with (root / locks.REPOSITORY_LOCK).open("a"):
        assert [each.pid for each in lock_holders(root / locks.REPOSITORY_LOCK)] == [process.pid]


def test_a_hard_link_lock_of_a_killed_dvc_is_a_problem_for_the_user_to_fix(root: Path) -> None:
    path = root / locks.REPOSITORY_LOCK
    path.unlink()
    process = subprocess.run(
        [sys.executable, "-c", HARD_LINK, str(path), str(path.parent)], timeout=60
    )
    assert process.returncode == 9
    finding = only(locks.dvc_locks(root), "DVC lock")
    assert (finding.level, finding.fix) == ("problem", None)
    assert "rm .dvc/tmp/lock" in finding.remedy


def test_a_stopped_flow_is_a_problem(root: Path, start: Start) -> None:
    path = root / layout.FLOWS / "lock"
    path.parent.mkdir(parents=True)
    process = start(sys.executable, "-c", HOLD, str(path))
    assert locks.flow_lock(root)[0].level == "ok"
    suspend(process)
    finding = locks.flow_lock(root)[0]
    assert finding.level == "problem"
    assert str(process.pid) in finding.what


@pytest.mark.parametrize("of_host", [True, False])
def test_a_slot_held_by_a_process_that_runs_no_stage_is_leaked(
    root: Path, start: Start, of_host: bool
) -> None:
    folder = host_folder() if of_host else root / layout.FLOWS / "slots"
    folder.mkdir(parents=True)
    process = start(sys.executable, "-c", HOLD, str(folder / "0.lock"))
    (finding,) = locks.slots(root)
    assert (finding.check, finding.level, finding.fix) == ("slots", "problem", None)
    assert f"kill {process.pid}" in finding.remedy


def test_a_slot_in_which_a_stage_runs_is_in_use_and_free_when_its_guard_is_killed(
    root: Path, start: Start
) -> None:
    slots = Slots(("cpu-0",), root / layout.FLOWS / "slots", False)
    record = (root / "train@a.pid").resolve()
    with slots.acquire(1, lambda: True) as (_, lock_fds):
        guard = REPOSITORY / "flows" / "dvc_api" / "guard.py"
        process = start(
            sys.executable,
            "-I",
            "-S",
            str(guard),
            str(record),
            "sh",
            "-c",
            "echo up; sleep 300",
            pass_fds=lock_fds,
        )
    assert [(finding.level, finding.what) for finding in locks.slots(root)] == [
        ("ok", "in use: cpu-0 by train@a")
    ]
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in children:
        child.kill()
    assert [(finding.level, finding.what) for finding in locks.slots(root)] == [
        ("ok", "all are free")
    ]


def test_a_released_lock_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert is_locked(path)
        assert [process.pid for process in lock_holders(path)] == [os.getpid()]
        fcntl.flock(handle, fcntl.LOCK_UN)
        assert not is_locked(path)
        assert lock_holders(path) == []
