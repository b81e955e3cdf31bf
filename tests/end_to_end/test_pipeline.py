"""The pipeline as a user runs it: real `dvc repro` in a clone, again, interrupted, repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages.core.errors import ExitCode
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.quarantine.ledger import read_quarantine
from tests.core.distributed.servers import Server, environment
from tests.flows.tiny import ENVIRONMENT, REPOSITORY
from tests.omnimedvqa import MODALITIES


def run(*command: str, cwd: Path, code: int = 0, server: Server | None = None) -> str:
    """Output of a command, whose trainings and evaluations run in forks of a server."""
    variables = served(server) if server else ENVIRONMENT
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == code, output[-4000:]
    return output


def served(server: Server) -> dict[str, str]:
    return environment(server, {"DVC_NO_ANALYTICS": "1"})


def locked(root: Path, stage: str) -> dict[str, str]:
    """Path -> md5 of a stage's outputs, from dvc.lock."""
    stages: dict[str, Any] = read_yaml(root / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for out in stages[stage]["outs"]}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, preloaded: Server) -> Iterator[Path]:
    """This working tree as a fresh clone, reduced to two checkpoints of two steps each.

    It tests few questions, since answering takes longest.
    """
    root = tmp_path_factory.mktemp("clone")
    files = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY
    )
    for name in files.split("\0"):
        if name and (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, root / name)
    params = read_yaml(root / "params.yaml")
    params["checkpoints"] = {key: params["checkpoints"][key] for key in ("ct", "lesion-grading")}
    params["evaluations"] = {
        name: params["evaluations"][name] for name in ("base", *params["checkpoints"])
    }
    params["grpo"]["max_steps"] = 2
    params["splits"]["train_share"] = 0.95
    params["report"]["bootstrap_samples"] = 1000
    (root / "params.yaml").write_text(dump_yaml(params), encoding="utf-8")
    (root / "dvc.lock").unlink(missing_ok=True)
    run("git", "init", "-q", cwd=root)
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-q", "-m", "the clone", cwd=root)
    run("dvc", "repro", cwd=root, server=preloaded)
    yield root
    shutil.rmtree(root, ignore_errors=True)


def test_one_command_leads_from_the_pinned_corpus_to_the_report(clone: Path) -> None:
    metrics = json.loads((clone / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["checkpoints"]) == {"ct", "lesion-grading"}
    page = (clone / "report" / "index.html").read_text(encoding="utf-8")
    assert "Lesion grading" in page
    assert run("git", "status", "--porcelain", "data.dvc", cwd=clone) == "", (
        "the import stays pinned"
    )


def test_every_question_read_is_kept_or_in_quarantine(clone: Path) -> None:
    download = read_quarantine(clone / "data" / "quarantine" / "download.parquet")
    assert download.read == download.kept + len(download.rows)
    records = sorted((clone / "data" / "records").glob("*.jsonl"))
    assert len(records) == len(MODALITIES)
    kept = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in records)
    resized = [
        read_quarantine(path)
        for path in sorted((clone / "data" / "quarantine" / "resize").glob("*.parquet"))
    ]
    assert kept == download.kept - sum(len(account.rows) for account in resized)
    for axis in ("modality", "task"):
        parts = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (clone / "data" / "splits" / "grouped" / axis).glob("*/*.json")
        ]
        assert sum(map(len, parts)) == kept


def test_results_of_all_stages_carry_their_provenance(clone: Path) -> None:
    results = []
    for name in (
        "predictions/ct.parquet",
        "data/quarantine/download.parquet",
        "data/quarantine/resize/ct.parquet",
    ):
        results.append(json.loads(pq.read_schema(clone / name).metadata[b"provenance"]))
    for name in ("data/data-tests.json", "report/metrics.json"):
        results.append(json.loads((clone / name).read_text(encoding="utf-8"))["provenance"])
    for name in (
        "data/splits/provenance.json",
        "training/ct.provenance.json",
        "report/provenance.json",
    ):
        results.append(json.loads((clone / name).read_text(encoding="utf-8")))
    for facts in results:
        assert facts["git_commit"] == run("git", "rev-parse", "HEAD", cwd=clone).strip()
        assert facts["git_dirty"] is False
        assert facts["corpus"] == "md5:" + read_yaml(clone / "data.dvc")["outs"][0]["md5"]


def test_running_again_changes_nothing_and_says_so(clone: Path) -> None:
    before = (clone / "dvc.lock").read_bytes()
    assert "Data and pipelines are up to date." in run("dvc", "repro", cwd=clone)
    assert (clone / "dvc.lock").read_bytes() == before


def test_dvc_shows_metrics_params_and_plots(clone: Path) -> None:
    assert "gain.lesion-grading" in run("dvc", "metrics", "show", cwd=clone)
    text = (clone / "params.yaml").read_text(encoding="utf-8")
    (clone / "params.yaml").write_text(text.replace("beta: 0.04", "beta: 0.05"), encoding="utf-8")
    try:
        assert "grpo.beta" in run("dvc", "params", "diff", cwd=clone)
        assert "train@ct" in run("dvc", "status", "train", cwd=clone)
    finally:
        (clone / "params.yaml").write_text(text, encoding="utf-8")
    run("dvc", "plots", "show", "--out", "plots", cwd=clone)
    assert "completion_length" in (clone / "plots" / "index.html").read_text(encoding="utf-8")


def test_a_second_run_gives_the_same_weights_and_predictions(
    clone: Path, preloaded: Server
) -> None:
    stages = ("train@ct", "evaluate@ct")
    before = {stage: locked(clone, stage) for stage in stages}
    command = ("dvc", "repro", "--force", "--no-run-cache", "-s", *stages)
    run(*command, cwd=clone, server=preloaded)
    assert {stage: locked(clone, stage) for stage in stages} == before


def test_an_interrupted_stage_leaves_nothing_half_written_and_runs_again(
    clone: Path, preloaded: Server
) -> None:
    before = locked(clone, "train@lesion-grading")
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--no-run-cache", "-s", "train@lesion-grading"],
        cwd=clone,
        env=served(preloaded),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # a shell that runs the tests in the background has them ignore interrupts, and so would
        # this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    temporary, state = (
        clone / "models" / ".lesion-grading.incomplete",
        clone / ".scratch" / "train" / "lesion-grading",
    )
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state.exists(), "the stage never began to train"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not (clone / "models" / "lesion-grading").exists()
    assert not temporary.exists()
    run("dvc", "repro", "--no-run-cache", cwd=clone, server=preloaded)
    assert locked(clone, "train@lesion-grading") == before


def test_a_bad_setting_stops_a_stage_with_one_message(clone: Path) -> None:
    text = (clone / "params.yaml").read_text(encoding="utf-8")
    (clone / "params.yaml").write_text(
        text.replace("num_generations: 8", "num_generations: 1"), encoding="utf-8"
    )
    try:
        output = run(sys.executable, "-m", "stages.train", "ct", cwd=clone, code=ExitCode.SETTINGS)
    finally:
        (clone / "params.yaml").write_text(text, encoding="utf-8")
    assert "grpo.num_generations = 1: input should be greater than or equal to 2" in output
    assert "Traceback" not in output


def test_a_report_can_be_read_without_its_models(clone: Path) -> None:
    table = pd.read_parquet(clone / "report" / "tables" / "predictions" / "base.parquet")
    metrics = json.loads((clone / "report" / "metrics.json").read_text(encoding="utf-8"))
    mine = table[(table["modality"] == "ct") & table["modality_test"]]
    assert metrics["checkpoints"]["ct"]["in_domain"]["base"] == pytest.approx(
        mine["correct"].mean(), abs=1e-4
    )
