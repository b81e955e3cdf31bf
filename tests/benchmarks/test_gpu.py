"""The GPU cost page: hours follow from rates, runs resume, failures are reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import learning, parts
from benchmarks.gpu.comparison import predictions
from benchmarks.gpu.learning import prepare
from benchmarks.gpu.matrix import EVALUATED, hours, pass_seconds
from benchmarks.gpu.page import kernel_columns, page
from benchmarks.grpo_step.setting import profile_params
from stages.core.code_version import stage_code
from stages.core.outputs import read_json
from stages.core.params import load_params
from stages.profiles.measured import evaluation_setting, training_setting
from stages.profiles.schema import load_profile
from stages.profiles.splice import set_values
from tests.conftest import ROOT

DEVICE = {"name": "cpu", "torch": "2", "transformers": "5", "trl": "1"}


FULL = profile_params("full")
PROFILES = {"full": FULL, "full-3b": profile_params("full-3b")}


def steps(ms: float, tokens: int = 10, rollout: float = 0.2, **changes: Any) -> dict[str, Any]:
    """Results of benchmarks.grpo_step, as far as the page needs them."""
    ways = {
        "drafted": ms / 2,
        "shared": ms,
        "trl": 4 * ms,
        "g_copies": 5 * ms,
        "training": ms / 4,
    }
    row = {
        "model": "qwen2-vl-2b",
        "group_size": 4,
        "completion_tokens": tokens,
        "ms_per_prompt": ways,
        "completion_tokens_per_second": dict.fromkeys(ways, 100.0),
        "mfu": dict.fromkeys(ways, 0.5),
        "flops_per_step": {
            "drafted": 1e12,
            "shared": 2e12,
            "trl": 8e12,
            "g_copies": 9e12,
            "training": 1e12,
        },
        "does_not_fit": [],
        "training": {
            "steps": 8,
            "reference_steps": 8,
            "loader_workers": 2,
            "drafted": 1.0,
            "forwards": 0.0,
        },
        "memory_at_limit": {"completion_tokens": 256, "total": 60 * 2**30, "outside": 2**30},
        "peak_memory_bytes": {way: {"total": 2**33} for way in ways},
        "kernels": dict.fromkeys(ways),
        "seconds": {
            way: {"step": 4 * each / 1000, "rollout": rollout} for way, each in ways.items()
        },
        "max_logp_diff": 1e-3,
        "grad_rel_diff": 2e-3,
        "grad_rounding": 3e-3,
    }
    shared = {
        "profile": "full",
        "setting": training_setting(FULL),
        "precision": "autocast",
        "prompts_per_step": 4,
        "passes": 1,
        "threads": 1,
        "baselines_tower": "sdpa",
    }
    return {"rows": [row]} | shared | changes


EVALUATION = {
    "questions_per_second": 100.0,
    "published_questions_per_second": 25.0,
    "speedup": 4.0,
    "profile": "full",
    "setting": evaluation_setting(FULL),
    "rows": [{"baselines_tower": "sdpa"}],
}


def test_hours_follow_from_the_rates() -> None:
    result = hours(
        {"2b-no-think": steps(20.0), "3b": steps(20.0, profile="full-3b")},
        {"2b-no-think": EVALUATION, "2b-think": EVALUATION},
        PROFILES,
    )
    assert result["2b-no-think"]["shared"] == pytest.approx(142_668 * 0.020 / 3600)
    assert result["2b-no-think"]["drafted"] == pytest.approx(142_668 * 0.010 / 3600)
    assert result["2b-no-think"]["training"] == pytest.approx(142_668 * 0.005 / 3600)
    # two epochs
    assert result["3b"]["shared"] == pytest.approx(2 * 142_668 * 0.020 / 3600)
    assert result["2b-no-think"]["evaluation"] == pytest.approx(EVALUATED / 100 / 3600)
    assert set(result["2b-think"]) == {"evaluation"}
    # eight checkpoints answer the tests of modalities, five those of types, and the base both
    assert EVALUATED == 9 * 17_662 + 6 * 17_919


def test_a_pass_that_samples_a_token_is_what_a_longer_rollout_takes_more() -> None:
    both = {"no-think": steps(20.0, rollout=0.3), "think": steps(20.0, tokens=150, rollout=3.1)}
    assert pass_seconds(both) == {"qwen2-vl-2b": {"full": pytest.approx(0.02)}}
    halves = {name: each | {"passes": 2} for name, each in both.items()}
    assert pass_seconds(halves) == {"qwen2-vl-2b": {"full": pytest.approx(0.01)}}
    assert pass_seconds({"no-think": steps(20.0)}) == {}


def test_passes_of_models_in_one_profile_are_kept_apart() -> None:
    measured = {"a": steps(20.0, rollout=0.3), "b": steps(20.0, tokens=150, rollout=3.1)}
    for name, each in (("c", steps(20.0)), ("d", steps(20.0, tokens=150, rollout=0.34))):
        each["rows"][0]["model"] = "tiny"
        measured[name] = each
    result = pass_seconds(measured)
    assert result["qwen2-vl-2b"] == {"full": pytest.approx(0.02)}
    assert result["tiny"] == {"full": pytest.approx(0.001)}


def test_kernels_and_waiting_add_up_to_the_step() -> None:
    kernels = {"kernels": 5700, "copies": 12, "gpu_seconds": 0.1}
    assert kernel_columns(kernels, 0.4) == ["5,700", "12", "100.0", "25%", "75%"]
    assert kernel_columns(None, 0.4) == ["-"] * 5


def test_measured_and_estimated_stand_side_by_side_on_a_gpu_only() -> None:
    predicted = predictions("NVIDIA H200", PROFILES)
    assert predicted["full-no-think"]["prompts_per_step"] == 4
    assert predicted["full-no-think"]["step_ms"] == pytest.approx(
        sum(predicted["full-no-think"]["parts_ms"].values())
    )
    assert predicted["full-think"]["step_ms"] > predicted["full-no-think"]["step_ms"]
    result: dict[str, Any] = {
        "device": {"name": "NVIDIA H200", "torch": "2", "transformers": "5", "trl": "1"},
        "steps": {"qwen2-vl-2b-no-think": steps(100.0)},
        "evaluation": {"qwen2-vl-2b-no-think": EVALUATION},
        "learning": None,
        "pass_seconds": {"qwen2-vl-2b": {"full": 0.02}, "tiny": {"full": 0.001}},
        "matrix_hours": {},
        "predicted": predicted,
        "failed": [],
        "missing": [],
        "more_minutes": {},
        "outdated": [],
    }
    step = f"{predicted['full-no-think']['step_ms']:.1f}"
    row = f"| qwen2-vl-2b-no-think | H200 | ms a step of a training | {step} | "
    # a training's, not a single step's, which takes 400 ms, or drafted 200
    assert f"{row}100.00 |" in page(result)
    assert "| ms a pass that samples a token | 24.0 | 20.00 |" in page(result)
    memory = f"{predicted['full-no-think']['memory_bytes'] / 2**30:.1f}"
    assert f"| GiB of a training, completions at the limit | {memory} | 61.00 |" in page(result)
    question = f"{predicted['full-no-think']['ms_per_question']:.1f}"
    assert f"| ms a question | {question} | 10.00 |" in page(result)
    assert "No GPU was at hand" not in page(result)
    on_cpu = page(result | {"device": result["device"] | {"name": "cpu"}})
    assert f"{row}- |" in on_cpu
    assert "No GPU was at hand" in on_cpu


def test_a_call_ends_in_time_and_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu"
    measured: list[str] = []
    slow = True

    def measure(command: list[str], timeout: float) -> int | None:
        path = Path(command[-1])
        measured.append(path.stem)
        assert 0 < timeout <= 60
        if slow:
            path.write_text("half")
            return None
        path.write_text(json.dumps(steps(20.0)))
        return 0

    monkeypatch.setattr(gpu, "run_part", measure)
    monkeypatch.setattr(gpu, "device", lambda: dict(DEVICE))
    monkeypatch.setattr(gpu, "collect_provenance", lambda params: params)
    arguments = ["gpu", "--models", "tiny", "--parts", "steps", "--out", str(out), "--minutes", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    both = ["steps-tiny-no-think", "steps-tiny-think"]
    assert gpu.main() == 1
    assert measured == both
    result = read_json(out.with_suffix(".json"), "")
    assert (result["missing"], result["failed"], result["steps"]) == (both, [], {})
    assert not list(out.iterdir())
    # both had all the minutes, as nothing took time here
    text = out.with_suffix(".md").read_text()
    assert "steps-tiny-think is not measured yet: re-run the command with --minutes 2" in text
    assert "steps-tiny-think alone takes more than 1 minutes: pass --minutes 2" in (
        capsys.readouterr().err
    )
    slow = False
    assert gpu.main() == 0
    assert "nothing is missing" in capsys.readouterr().err
    assert read_json(out.with_suffix(".json"), "")["missing"] == []
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0", "--repeats", "1"])
    measured.clear()
    assert gpu.main() == 1
    assert measured == []
    # results of another command stay until their replacement starts
    assert sorted(path.stem for path in out.glob("*.json")) == both
    assert set(read_json(out.with_suffix(".json"), "")["steps"]) == {"tiny-no-think", "tiny-think"}


def test_each_part_measures_the_profile_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--models", "qwen2.5-vl-3b", "qwen2-vl-2b"])
    commands = dict(gpu.commands(gpu._arguments()))
    for model, profile in (("qwen2.5-vl-3b", "full-3b"), ("qwen2-vl-2b", "full")):
        for style, tokens in (("no-think", "10"), ("think", "150")):
            shared = ["--model", model, "--profile", profile, "--completions", tokens]
            words = commands[f"steps-{model}-{style}"]
            assert words[:7] == ["benchmarks.grpo_step", *shared]
            assert words[7:9] == ["--style", style]
            assert commands[f"evaluation-{model}-{style}"][:7] == ["benchmarks.evaluate", *shared]
    assert commands["learning"] == ["benchmarks.gpu.learning"]


def test_existing_results_are_reused_and_failures_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu"
    measured: list[str] = []
    broken = True

    def measure(command: list[str], timeout: float) -> int:
        path = Path(command[-1])
        measured.append(path.stem)
        evaluation = path.stem.startswith("evaluation")
        if evaluation and broken:
            return 1
        path.write_text(json.dumps(EVALUATION if evaluation else steps(20.0)))
        return 0

    monkeypatch.setattr(gpu, "run_part", measure)
    monkeypatch.setattr(gpu, "device", lambda: dict(DEVICE))
    monkeypatch.setattr(gpu, "collect_provenance", lambda facts: facts)
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu", "--models", "tiny", "--parts", "steps", "evaluation", "--out", str(out)],
    )
    assert gpu.main() == 1
    assert measured == [
        "steps-tiny-no-think",
        "evaluation-tiny-no-think",
        "steps-tiny-think",
        "evaluation-tiny-think",
    ]
    text = out.with_suffix(".md").read_text()
    assert "evaluation-tiny-think failed" in text
    row = "| tiny-no-think | ours, none drafted | 80.0 | 20.0 | 100 | 50% | 8.0 | 5.00 | 4.50 |"
    assert row in text
    assert "No GPU was at hand" in text
    assert read_json(out.with_suffix(".json"), "")["failed"] == [
        "evaluation-tiny-no-think",
        "evaluation-tiny-think",
    ]
    measured.clear()
    broken = False
    assert gpu.main() == 0
    assert measured == ["evaluation-tiny-no-think", "evaluation-tiny-think"]
    assert "| tiny-think | bfloat16 | 100.0 | 25.0 | 4.00 |" in out.with_suffix(".md").read_text()


def test_the_first_of_several_gpus_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def measure(*_: Any) -> int:
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return 1

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setattr(gpu, "device", lambda: dict(DEVICE))
    monkeypatch.setattr(gpu, "run_part", measure)
    monkeypatch.setattr(gpu, "collect_provenance", lambda facts: facts)
    monkeypatch.setattr(gpu, "find_c_compiler", lambda: "/usr/bin/gcc")
    options = ["--models", "tiny", "--parts", "learning", "--out", str(tmp_path / "gpu")]
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    assert gpu.main() == 1
    assert seen == ["3"]


def test_on_a_gpu_a_compiler_is_asked_for_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "visible_gpus", list)
    monkeypatch.setattr(gpu, "find_c_compiler", lambda: None)
    monkeypatch.setattr(gpu, "device", lambda: {**DEVICE, "name": "NVIDIA H200"})
    options = ["--models", "tiny", "--out", str(tmp_path / "gpu")]
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    assert gpu.main() == 1
    assert "apt-get install gcc" in capsys.readouterr().err
    assert not (tmp_path / "gpu.md").exists()


def test_results_of_another_command_device_code_or_setting_are_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    device = dict(DEVICE)

    def measure(command: list[str], timeout: float) -> int:
        measured.append(Path(command[-1]).stem)
        Path(command[-1]).write_text(json.dumps(steps(20.0)))
        return 0

    def run(*words: str) -> list[str]:
        measured.clear()
        arguments = ["--models", "tiny", "--parts", "steps", "--out", "gpu", *words]
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
        assert gpu.main() == 0
        return list(measured)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "run_part", measure)
    monkeypatch.setattr(gpu, "device", lambda: dict(device))
    monkeypatch.setattr(gpu, "collect_provenance", lambda params: params)
    both = ["steps-tiny-no-think", "steps-tiny-think"]
    assert run() == both
    assert run() == []
    assert run("--repeats", "2") == both
    device["torch"] = "3"
    assert run("--repeats", "2") == both
    monkeypatch.setattr(parts, "_code_hash", lambda module: f"other code of {module}")
    assert run("--repeats", "2") == both
    assert run("--repeats", "2") == []
    monkeypatch.setattr(parts, "_profile_setting", lambda *_: {"style": "another profile"})
    result = gpu.collect(tmp_path / "gpu", dict(device))
    assert (result["steps"], result["outdated"]) == ({}, both)
    assert run("--repeats", "2") == both
    assert sorted(path.name for path in (tmp_path / "gpu").iterdir()) == [
        f"{name}.json" for name in both
    ]


def test_the_origin_of_a_result_names_code_and_setting_of_its_part() -> None:
    words = ["--model", "tiny", "--profile", "full", "--completions", "150"]
    device = {"name": "cpu"}
    steps_part = parts.origin(["benchmarks.grpo_step", *words, "--style", "think"], device)
    evaluation = parts.origin(["benchmarks.evaluate", *words], device)
    think = profile_params("full", "think")
    assert steps_part["setting"] == training_setting(think)
    assert evaluation["setting"] == evaluation_setting(think)
    learning = parts.origin(["benchmarks.gpu.learning"], device)
    assert len({each["code"] for each in (steps_part, evaluation, learning)}) == 3
    # a module of the stage and one of the benchmark are among the code
    files = [ROOT / "stages/grpo/engine.py", ROOT / "benchmarks/grpo_step/training.py"]
    assert parts._hash_files(files) != parts._hash_files(files[:1])


def start_part(tmp_path: Path, seconds: float) -> tuple[subprocess.Popen[str], int, Path]:
    """A process that runs a part of two processes for so long, the second one and its TMPDIR."""
    part = tmp_path / "part.py"
    part.write_text(
        "import subprocess, tempfile, time\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        "tempfile.mkstemp()\n"
        "print(child.pid, tempfile.gettempdir(), flush=True)\n"
        "time.sleep(300)\n"
    )
    code = (
        "import sys\n"
        "from benchmarks.gpu import parts\n"
        "from stages.core.cli import exit_on_termination\n"
        f"command = [sys.executable, {str(part)!r}]\n"
        "exit_on_termination()\n"
        f"print('code', parts.run_part(command, {seconds}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    child, folder = process.stdout.readline().split()
    return process, int(child), Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["timeout", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_part_leaves_no_process_and_no_file(tmp_path: Path, end: Any) -> None:
    process, child, folder = start_part(tmp_path, 2 if end == "timeout" else 300)
    assert folder.is_dir()
    if end != "timeout":
        process.send_signal(end)
    output, _ = process.communicate(timeout=60)
    if end == "timeout":
        assert output == "code None\n"
    assert not Path(f"/proc/{child}").exists()
    assert not folder.exists()


def test_a_part_that_ends_gives_its_exit_code() -> None:
    assert parts.run_part([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3


def test_the_learning_run_keeps_to_the_sample_where_a_profile_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "infra").mkdir(parents=True)
    for name in ("dvc.yaml", "stages", "infra/sample", "infra/profiles"):
        (project / name).symlink_to(ROOT / name)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    _, profile = load_profile("full", ROOT / "infra" / "profiles")
    changed = set_values(text, profile.params, "full", project / "params.yaml")
    (project / "params.yaml").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(learning, "REPOSITORY", project)
    folder = tmp_path / "run"
    folder.mkdir()
    prepare(folder, tmp_path, [])
    params = load_params(folder / "params.yaml")
    sample = load_params(ROOT / "params.yaml")
    assert params.grpo == sample.grpo
    assert params.splits == sample.splits
    assert params.base == sample.base.model_copy(update={"source": str(tmp_path)})


def test_the_learning_run_uses_the_sample_with_another_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    assert len(prepare(tmp_path, base, ["grpo.max_steps=3", "evaluate.ablations=false"])) == 13
    params = load_params(tmp_path / "params.yaml")
    assert params.base.source == str(base)
    assert params.grpo.max_steps == 3
    assert not params.evaluate.ablations
    assert (tmp_path / params.corpus.archive).exists()
    for stage in ("train", "evaluate"):
        assert len(stage_code(stage, tmp_path)) == len(stage_code(stage, ROOT)) > 1
