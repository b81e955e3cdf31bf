"""Processes that a guard started outlive neither the guard nor its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.dvc_api.processes import processes_of
from tests.flows.tiny import REPOSITORY, eventually

GUARD = REPOSITORY / "flows" / "dvc_api" / "guard.py"
# a command with a child of its own, like DVC with a stage
NESTED = ["sh", "-c", "sh -c 'echo ready; exec sleep 300'; true"]


def guard(record: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), str(record), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def await_ready(process: subprocess.Popen[str], record: Path) -> list[psutil.Process]:
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    processes = processes_of(record)
    assert len(processes) >= 2
    return processes


def are_dead(processes: list[psutil.Process]) -> bool:
    """Whether all have ended; zombies that the system's first process has not reaped count."""
    return not any(
        each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes
    )


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_output_and_exit_code_are_those_of_the_command(
    tmp_path: Path, command: str, code: int
) -> None:
    process = guard(tmp_path / "record", "sh", "-c", f"echo output; {command}")
    assert process.stdout
    assert process.stdout.read() == "output\n"
    assert process.wait(30) == code
    assert not (tmp_path / "record").exists()


def test_closing_the_pipe_ends_the_command_and_its_children(tmp_path: Path) -> None:
    process = guard(tmp_path / "record", *NESTED)
    processes = await_ready(process, tmp_path / "record")
    assert process.stdin
    process.stdin.close()
    assert process.wait(30) != 0
    assert eventually(lambda: are_dead(processes))
    assert not (tmp_path / "record").exists()


def test_a_command_that_ignores_interrupts_is_finally_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = tmp_path / "guard.py"
    quick.write_text(
        GUARD.read_text(encoding="utf-8").replace("15.0", "0.2").replace("5.0", "0.2"),
        encoding="utf-8",
    )
    monkeypatch.setattr(sys.modules[__name__], "GUARD", quick)
    process = guard(
        tmp_path / "record",
        "sh",
        "-c",
        "trap '' INT TERM; echo ready; while true; do sleep 0.1; done",
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    assert process.stdin
    process.stdin.close()
    assert process.wait(30) == 128 + signal.SIGKILL


def test_children_of_a_killed_command_are_ended(tmp_path: Path) -> None:
    process = guard(tmp_path / "record", *NESTED)
    processes = await_ready(process, tmp_path / "record")
    os.kill(int((tmp_path / "record").read_text()), signal.SIGKILL)
    assert process.wait(30) == 137
    assert eventually(lambda: are_dead(processes))


def test_a_command_ends_when_its_caller_is_killed(tmp_path: Path) -> None:
    record = tmp_path / "record"
    command = [sys.executable, "-I", "-S", str(GUARD), str(record), *NESTED]
    code = (
        f"import subprocess, time; p = subprocess.Popen({command!r}, stdin=subprocess.PIPE,"
        " start_new_session=True); time.sleep(300)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code])
    assert eventually(lambda: len(processes_of(record)) >= 2)
    processes = processes_of(record)
    caller.kill()
    caller.wait()
    assert eventually(lambda: are_dead(processes))
