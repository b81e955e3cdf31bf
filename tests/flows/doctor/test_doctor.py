"""The doctor runs all checks, fixes what is safe, and reports problems in its exit code."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from flows.doctor import locks
from flows.doctor.command import Diagnosis, examine, sum_up
from flows.doctor.findings import Finding
from tests.commands import med_r1
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import copy_folder


@pytest.fixture
def root(run_by_dvc: RunByDvc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A healthy workspace as the working directory, no server, and GPU slots of its own."""
    (tmp_path / "host").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "host"))
    monkeypatch.setattr(locks, "STAGE_START_SECONDS", 0.1)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    root = copy_folder(run_by_dvc(("a",)), tmp_path / "workspace")
    monkeypatch.chdir(root)
    return root


def corrupt_a_lock(root: Path) -> None:
    (root / locks.PATH_LOCKS).write_text("{", encoding="utf-8")


def test_a_healthy_workspace_has_no_problem(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert med_r1("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("0 problems, ")
    assert any(line.startswith("ok ") and "4 stages, 4 in dvc.lock" in line for line in lines)


def test_a_problem_is_reported_with_its_remedy_and_only_fix_changes_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt_a_lock(root)
    assert med_r1("doctor") == 1
    printed = capsys.readouterr().out
    assert "rm .dvc/tmp/rwlock" in printed
    assert printed.splitlines()[-1].startswith("1 problem, ")
    assert printed.splitlines()[-1].endswith("; --fix can fix 1 of them")
    assert (root / locks.PATH_LOCKS).read_text(encoding="utf-8") == "{"
    assert med_r1("doctor", "--fix") == 0
    printed = capsys.readouterr().out
    assert "moved .dvc/tmp/rwlock to rwlock.broken" in printed
    assert printed.splitlines()[-1].endswith(", 1 fixed")
    assert med_r1("doctor") == 0


def test_json_has_every_finding(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corrupt_a_lock(root)
    assert med_r1("doctor", "--json") == 1
    findings = {each["check"]: each for each in json.loads(capsys.readouterr().out)}
    path_locks = findings["DVC path locks"]
    assert (path_locks["level"], path_locks["fixable"], path_locks["fix_result"]) == (
        "problem",
        True,
        "",
    )
    assert {
        "pipeline",
        "DVC lock",
        "flow lock",
        "orphans",
        "records",
        "slots",
        "incomplete outputs",
        "Prefect server",
        "disk",
    } <= findings.keys()


def test_other_checks_run_after_one_that_raises(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "dvc.lock").write_text("<<<<<<< HEAD\n", encoding="utf-8")
    corrupt_a_lock(root)
    assert med_r1("doctor", "--json") == 1
    levels = {each["check"]: each["level"] for each in json.loads(capsys.readouterr().out)}
    assert [name for name, level in levels.items() if level == "problem"] == [
        "pipeline",
        "DVC path locks",
        "disk",
    ]
    assert levels["orphans"] == "ok"


def test_a_folder_without_a_pipeline_is_a_problem(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert med_r1("doctor") == 1
    assert "dvc.yaml is missing" in capsys.readouterr().out


def test_a_failing_fix_leaves_the_problem_and_the_next_is_applied(tmp_path: Path) -> None:
    def fail() -> str:
        raise subprocess.SubprocessError("no luck")

    findings = [
        Finding("one", "problem", "broken", fix=fail),
        Finding("two", "problem", "broken", fix=lambda: "did it"),
    ]
    diagnoses = examine(tmp_path, fix=True, checks={"all": lambda root: findings})
    assert [(each.is_problem, each.fix_result, each.fix_error) for each in diagnoses] == [
        (True, "", "could not be fixed: no luck"),
        (False, "did it", ""),
    ]
    assert sum_up(diagnoses) == "1 problem, 0 warnings, 1 fixed"


def test_a_warning_is_not_a_problem() -> None:
    diagnosis = Diagnosis(Finding("GPU", "warning", "none"))
    assert not diagnosis.is_problem
    assert sum_up([diagnosis]) == "0 problems, 1 warning"
