"""How a stage process ends: exit code by exception type, one message, outcome file."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.cli import run_stage
from stages.core.errors import (
    DiskFullError,
    ExitCode,
    InputError,
    LostPeerError,
    ReportedError,
    SettingsError,
    error_of,
)
from stages.core.outcome import (
    RUN,
    STAGE,
    StageOutcome,
    outcome_path,
    parse_outcome,
    read_outcome,
    write_outcome,
)
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from tests.workspaces import REPOSITORY

ENDS: list[tuple[BaseException, ExitCode]] = [
    (InputError("file x, record 3: bad"), ExitCode.INPUT),
    (SettingsError("params.yaml: seed"), ExitCode.SETTINGS),
    (RefusedDataError("corpus.zip", CorpusFault.LAYOUT), ExitCode.REFUSED_DATA),
    (DiskFullError("/scratch"), ExitCode.DISK_FULL),
    (OSError(errno.ENOSPC, "No space left on device", "data/x.png"), ExitCode.DISK_FULL),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "data/x.png"), ExitCode.DISK_FULL),
    (LostPeerError("rank 1"), ExitCode.LOST_PEER),
    (ReportedError(ExitCode.SETTINGS, "said already"), ExitCode.SETTINGS),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    (SystemExit(143), ExitCode.TERMINATED),
    (SystemExit(2), ExitCode.USAGE),
    (SystemExit(None), ExitCode.DONE),
]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a flow runs the stage train@ct."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(STAGE, "train@ct")
    monkeypatch.setenv(RUN, "this run")
    return tmp_path


def end(error: BaseException) -> int:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_stage(main)
    return int(exit_.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code"), ENDS, ids=[f"{type(error).__name__} {code.name}" for error, code in ENDS]
)
def test_a_stage_ends_with_the_code_of_its_error_and_says_so_in_its_outcome(
    error: BaseException, code: ExitCode, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(error) == code
    outcome = read_outcome(workspace, "train@ct", "this run")
    assert outcome is not None
    assert outcome.code == code
    lines = capsys.readouterr().err.splitlines()
    if isinstance(error, (ReportedError, SystemExit)):
        assert not lines, "said by somebody else"
    else:
        assert len(lines) == 1
        assert outcome.message in lines[0]


def test_every_code_that_a_stage_can_give_is_given_by_an_error() -> None:
    assert {code for _, code in ENDS} == set(ExitCode) - {ExitCode.CRASHED, ExitCode.KILLED}


def test_a_bug_keeps_its_traceback_and_is_an_outcome(workspace: Path) -> None:
    def main() -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run_stage(main)
    assert read_outcome(workspace, "train@ct", "this run") == StageOutcome(
        ExitCode.CRASHED, "ZeroDivisionError: by zero"
    )


def test_a_stage_that_succeeds_says_so(workspace: Path) -> None:
    run_stage(lambda: None)
    assert read_outcome(workspace, "train@ct", "this run") == StageOutcome(ExitCode.DONE)


def test_a_stage_that_is_killed_says_so(workspace: Path) -> None:
    text = (
        "import os, signal\nfrom stages.core.cli import run_stage\nrun_stage(lambda:"
        " os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == -9
    outcome = read_outcome(workspace, "train@ct", "this run")
    assert outcome is not None
    assert outcome.code == ExitCode.KILLED


def test_an_outcome_of_another_run_or_stage_is_never_read(workspace: Path) -> None:
    end(InputError("old"))
    assert read_outcome(workspace, "train@ct", "next run") is None
    assert read_outcome(workspace, "train@mri", "this run") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"run": "this run"}',
        b'{"run": "this run", "code": 99, "message": ""}',
    ],
)
def test_what_is_no_outcome_is_none(content: bytes, workspace: Path) -> None:
    path = outcome_path(workspace, "train@ct")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read_outcome(workspace, "train@ct", "this run") is None


def test_run_by_hand_nothing_is_written(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STAGE)
    end(InputError("bad"))
    assert not list(workspace.iterdir())


def test_a_process_that_was_launched_writes_where_its_launcher_reads(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(workspace / "rank.json"))
    end(InputError("bad"))
    assert parse_outcome(json.loads((workspace / "rank.json").read_text())) == StageOutcome(
        ExitCode.INPUT, "bad"
    )
    assert not outcome_path(workspace, "train@ct").exists(), "the launcher's to write"


def test_an_outcome_that_cannot_be_written_hides_no_error(workspace: Path) -> None:
    (workspace / ".scratch").write_text("no folder", encoding="utf-8")
    write_outcome(StageOutcome(ExitCode.DONE))
    assert end(InputError("bad")) == ExitCode.INPUT


@pytest.mark.parametrize("code", ExitCode)
def test_the_code_of_a_process_is_passed_on_by_the_one_that_started_it(code: ExitCode) -> None:
    passed_on = {ExitCode.SETTINGS, ExitCode.DISK_FULL, ExitCode.LOST_PEER}
    assert error_of(code, "rank 1").code == (code if code in passed_on else ExitCode.INPUT)
