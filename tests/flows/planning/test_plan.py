"""The plan predicts what the flow does, and changes nothing in the workspace."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from flows.planning.model import Plan, Step
from flows.planning.plan import make_plan
from flows.scheduling import durations
from stages.core import layout
from stages.core.errors import ExitCode, InputError
from stages.core.yaml_files import dump_yaml, read_yaml
from tests.commands import med_r1
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import REPOSITORY, copy_folder, make_workspace, run

TRAININGS = ("train@a", "train@b", "train@c")


@pytest.fixture(scope="module")
def reproduced(run_by_dvc: RunByDvc, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy_folder(run_by_dvc(), tmp_path_factory.mktemp("reproduced") / "workspace")
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-q", "-m", "results", cwd=root)
    return root


@pytest.fixture
def root(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An up-to-date workspace as the working directory, on a machine without GPUs."""
    root = copy_folder(reproduced, tmp_path / "workspace")
    monkeypatch.chdir(root)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return root


def steps(plan: Plan) -> dict[str, Step]:
    return {step.name: step for step in plan.steps}


def set_rate(root: Path, rate: int) -> None:
    (root / "params.yaml").write_text(f"rate: {rate}\n", encoding="utf-8")


def contents(root: Path) -> dict[str, str]:
    """Every file with its hash and time, except DVC's locks and index."""
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(".dvc/tmp/"):
            md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            files[name] = f"{md5} {path.stat().st_mtime_ns}"
    return files


def test_nothing_would_run_if_everything_is_up_to_date(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(root)
    assert plan.steps == ()
    assert len(plan.up_to_date) == 8
    assert plan.warnings == ()
    assert med_r1("plan") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Up to date: split, train@a, evaluate@a, train@b, evaluate@b, train@c, evaluate@c, report",
        "Nothing would run: all 8 stages are up to date",
    ]


def test_a_changed_parameter_is_named_and_stages_that_wait_for_it_say_so(root: Path) -> None:
    set_rate(root, 2)
    plan = make_plan(root)
    planned = steps(plan)
    assert plan.up_to_date == ("split",)
    assert [planned[name].why for name in TRAININGS] == ["rate modified"] * 3
    assert planned["evaluate@b"].why == "after train@b"
    assert planned["report"].why == "after evaluate@a, evaluate@b, evaluate@c"
    assert [planned[name].wave for name in ("train@a", "evaluate@a", "report")] == [1, 2, 3]
    assert any("not committed: params.yaml" in each for each in plan.warnings)


def test_dvc_runs_exactly_the_planned_stages(root: Path) -> None:
    (root / "parts" / "b.txt").unlink()
    (root / "corpus.txt").write_text("second\n", encoding="utf-8")
    planned = set(steps(make_plan(root)))
    lines = run("dvc", "repro", cwd=root).splitlines()
    assert {line.split("'")[1] for line in lines if line.startswith("Running stage")} == planned


def test_planning_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_rate(root, 2)
    (root / "models" / "b.txt").unlink()
    path = root / durations.FILE
    path.parent.mkdir(parents=True)
    path.write_text("{broken", encoding="utf-8")
    before = contents(root)
    assert len([name for name in before if name.startswith(".dvc/cache")]) > 8
    assert any(name.startswith(".git/") for name in before)
    assert med_r1("plan", "--slots", "2") == 0
    assert "7 of 8 stages would run" in capsys.readouterr().out
    assert contents(root) == before


def test_durations_are_recorded_or_from_meta_and_the_source_is_named(root: Path) -> None:
    set_rate(root, 2)
    for seconds in (30.0, 50.0, 40.0):
        durations.record(root, "train@b", seconds)
    plan = make_plan(root, slots=2)
    planned = steps(plan)
    assert (planned["train@b"].seconds, planned["train@b"].estimate) == (40.0, "recorded")
    assert (planned["train@a"].seconds, planned["train@a"].estimate) == (120.0, "meta")
    assert plan.gpu_hours == pytest.approx((120 + 40 + 120 + 3 * 60) / 3600)
    # a 0-120, b 0-40, c 40-160; evaluations fill the slots; the report is last
    assert [planned[name].start for name in TRAININGS] == [0.0, 0.0, 40.0]
    assert planned["report"].start == max(planned[f"evaluate@{key}"].start + 60 for key in "abc")
    assert plan.seconds == planned["report"].start + 60
    assert any("6 of 7 durations are unknown" in each for each in plan.notes)


def test_slots_per_gpu_are_planned_with(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_rate(root, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    alone = make_plan(root)
    shared = make_plan(root, slots_per_gpu=2)
    assert (len(alone.slots), len(shared.slots), shared.slots_per_gpu) == (1, 2, 2)
    assert shared.gpu_hours == pytest.approx(alone.gpu_hours / 2)
    assert shared.seconds < alone.seconds
    assert [steps(shared)[name].start for name in TRAININGS] == [0.0, 0.0, 120.0]


def test_shipped_durations_are_scaled_to_this_machine_and_named(root: Path) -> None:
    set_rate(root, 2)
    (root / layout.DATA_DVC).write_text(
        dump_yaml({"outs": [{"md5": "0" * 32, "path": "corpus.txt.copy"}]}), encoding="utf-8"
    )
    (root / durations.REFERENCE).parent.mkdir()
    reference = {"corpus": "md5:" + "0" * 32, "seconds": {"train@a": 20.0, "train@b": 30.0}}
    (root / durations.REFERENCE).write_text(json.dumps(reference), encoding="utf-8")
    durations.record(root, "train@b", 45.0)
    plan = make_plan(root, ["train@*"], slots=2)
    planned = steps(plan)
    assert (planned["train@b"].seconds, planned["train@b"].estimate) == (45.0, "recorded")
    assert (planned["train@a"].seconds, planned["train@a"].estimate) == (30.0, "reference")
    assert (planned["train@c"].seconds, planned["train@c"].estimate) == (120.0, "meta")
    assert any(each.startswith("1 of 3 durations are those of another") for each in plan.notes)


def test_stages_in_the_run_cache_take_no_time(root: Path) -> None:
    set_rate(root, 2)
    run("dvc", "repro", cwd=root)
    set_rate(root, 1)
    plan = make_plan(root)
    assert {
        name: step.estimate for name, step in steps(plan).items() if step.gpus
    } == dict.fromkeys(TRAININGS, "run-cache") | {f"evaluate@{key}": "meta" for key in "abc"}
    assert steps(plan)["train@a"].seconds == 0
    assert any("3 stages are in the run cache" in each for each in plan.notes)


def test_only_the_selected_stages_and_their_dependencies_are_planned(root: Path) -> None:
    (root / "corpus.txt").write_text("second\n", encoding="utf-8")
    plan = make_plan(root, only=["train@b"])
    assert [step.name for step in plan.steps] == ["split", "train@b"]
    assert plan.up_to_date == ()


def test_a_pipeline_that_never_ran_has_unknown_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = make_plan(make_workspace(tmp_path / "workspace", keys=("a",)))
    assert {name: step.why for name, step in steps(plan).items()} == {
        "split": "never run here",
        "train@a": "never run here; after split",
        "evaluate@a": "never run here; after train@a",
        "report": "never run here; after evaluate@a",
    }
    assert {step.bytes for step in plan.steps} == {None}
    assert any("4 of 4 stages have never run here" in each for each in plan.notes)


def test_outputs_that_do_not_fit_on_the_disk_are_a_warning(root: Path) -> None:
    lock = read_yaml(root / "dvc.lock")
    lock["stages"]["train@a"]["outs"][0]["size"] = 10**17
    (root / "dvc.lock").write_text(dump_yaml(lock), encoding="utf-8")
    set_rate(root, 2)
    plan = make_plan(root)
    assert plan.bytes > 10**17 > plan.bytes_free > 0
    assert any(
        each.startswith("the disk is too small: 90949.5 TiB would be written")
        for each in plan.warnings
    )


def test_a_stage_that_needs_more_slots_than_exist_is_a_warning(root: Path) -> None:
    pipeline = read_yaml(root / "dvc.yaml")
    pipeline["stages"]["train"]["do"]["meta"]["gpus"] = 2
    (root / "dvc.yaml").write_text(dump_yaml(pipeline), encoding="utf-8")
    set_rate(root, 2)
    assert any(
        each.startswith("train@a needs 2 slots and there are 1")
        for each in make_plan(root).warnings
    )
    assert not any("slots" in each for each in make_plan(root, slots=2).warnings)


def test_json_contains_the_whole_plan(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_rate(root, 2)
    assert med_r1("plan", "--only", "evaluate@a", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in printed["steps"]] == ["train@a", "evaluate@a"]
    assert printed["steps"][0]["reasons"] == {"changed deps": {"params.yaml": {"rate": "modified"}}}
    assert printed["steps"][1]["after"] == ["train@a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "trian"], "'trian'"), (["--slots", "0"], "0 slots")],
)
def test_invalid_arguments_are_refused(
    root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert med_r1("plan", *arguments) == ExitCode.INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("dvc.lock", "<<<<<<< HEAD\nstages: {}\n", "dvc.lock, line 1: unresolved git conflict"),
        ("params.yaml", "rate: [\n", "params.yaml"),
        ("dvc.yaml", "stages: {split: {}}\n", "dvc.yaml"),
        ("dvc.yaml", None, "dvc.yaml is missing: run from the project's root"),
    ],
)
def test_unreadable_files_are_named(
    root: Path, file: str, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / file).unlink()
    if text is not None:
        (root / file).write_text(text, encoding="utf-8")
    assert med_r1("plan") == ExitCode.INPUT
    assert message in capsys.readouterr().err


def test_a_wrong_key_in_this_projects_parameters_is_refused_before_any_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dvc.yaml", "data.dvc"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "stages/core").mkdir(parents=True)
    shutil.copy(REPOSITORY / "stages/core/params.py", tmp_path / "stages/core")
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(
        text.replace("  learning_rate:", "  learning_rat:"), encoding="utf-8"
    )
    with pytest.raises(InputError, match="learning_rat: unknown key; did you mean 'learning_rate'"):
        make_plan(tmp_path)
