"""The GPU cost page: hours follow from rates, runs resume, failures are reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.learning import prepare
from benchmarks.gpu.matrix import EVALUATED, hours
from stages.core.outputs import read_json
from stages.core.params import load_params


def steps(ms: float) -> dict[str, Any]:
    """Results of benchmarks.grpo_step, as far as the page needs them."""
    ways = {"shared": ms, "trl": 4 * ms, "g_copies": 5 * ms}
    row = {
        "group_size": 4,
        "completion_tokens": 10,
        "ms_per_prompt": ways,
        "completion_tokens_per_second": dict.fromkeys(ways, 100.0),
        "mfu": dict.fromkeys(ways, 0.5),
        "peak_memory_bytes": {way: {"total": 2**33} for way in ways},
        "max_logp_diff": 1e-3,
        "grad_rel_diff": 2e-3,
    }
    return {"rows": [row]}


EVALUATION = {"questions_per_second": 100.0, "published_questions_per_second": 25.0, "speedup": 4.0}


def test_hours_follow_from_the_rates() -> None:
    result = hours(
        {"2b-no-think": steps(20.0)}, {"2b-no-think": EVALUATION, "2b-think": EVALUATION}
    )
    assert result["2b-no-think"]["shared"] == pytest.approx(142_668 * 0.020 / 3600)
    assert result["2b-no-think"]["evaluation"] == pytest.approx(EVALUATED / 100 / 3600)
    assert set(result["2b-think"]) == {"evaluation"}
    # eight checkpoints answer the tests of modalities, five those of types, and the base both
    assert EVALUATED == 9 * 17_662 + 6 * 17_919


def test_existing_results_are_reused_and_failures_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu"
    measured: list[str] = []
    broken = True

    def measure(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        path = Path(command[-1])
        measured.append(path.stem)
        evaluation = path.stem.startswith("evaluation")
        if evaluation and broken:
            return subprocess.CompletedProcess(command, 1)
        path.write_text(json.dumps(EVALUATION if evaluation else steps(20.0)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", measure)
    monkeypatch.setattr(
        gpu, "device", lambda: {"name": "cpu", "torch": "2", "transformers": "5", "trl": "1"}
    )
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
    page = out.with_suffix(".md").read_text()
    assert "evaluation-tiny-think failed" in page
    assert "| tiny-no-think | 4 | 10 | shared-prefix | 20.0 | 100 | 50% | 8.0 | 4.00 |" in page
    assert "No GPU was at hand" in page
    assert read_json(out.with_suffix(".json"), "")["failed"] == [
        "evaluation-tiny-no-think",
        "evaluation-tiny-think",
    ]
    measured.clear()
    broken = False
    assert gpu.main() == 0
    assert measured == ["evaluation-tiny-no-think", "evaluation-tiny-think"]
    assert "| tiny-think | 100.0 | 25.0 | 4.00 |" in out.with_suffix(".md").read_text()


def test_results_of_another_command_or_device_are_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    device = {"name": "cpu", "torch": "2", "transformers": "5", "trl": "1"}

    def measure(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        measured.append(Path(command[-1]).stem)
        Path(command[-1]).write_text(json.dumps(steps(20.0)))
        return subprocess.CompletedProcess(command, 0)

    def run(*words: str) -> list[str]:
        measured.clear()
        arguments = ["--models", "tiny", "--parts", "steps", "--out", "gpu", *words]
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
        assert gpu.main() == 0
        return list(measured)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", measure)
    monkeypatch.setattr(gpu, "device", lambda: dict(device))
    monkeypatch.setattr(gpu, "collect_provenance", lambda params: params)
    both = ["steps-tiny-no-think", "steps-tiny-think"]
    assert run() == both
    assert run() == []
    assert run("--repeats", "2") == both
    device["torch"] = "3"
    assert run("--repeats", "2") == both
    assert sorted(path.name for path in (tmp_path / "gpu").iterdir()) == [
        f"{name}.json" for name in both
    ]


def test_the_learning_run_uses_the_sample_with_another_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    assert len(prepare(tmp_path, base, ["grpo.max_steps=3", "evaluate.ablations=false"])) == 13
    params = load_params(tmp_path / "params.yaml")
    assert params.base.source == str(base)
    assert params.grpo.max_steps == 3
    assert not params.evaluate.ablations
    assert (tmp_path / params.corpus.archive).exists()
