"""What the benchmark of `make repro` compares and sums; the run itself takes minutes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.reproduce import busy_core, by_group, changed_results, measure, results
from tests.conftest import ROOT


def test_models_and_metrics_must_be_the_committed_ones() -> None:
    committed = results(ROOT)
    assert {"models/base", "models/ct", "report/metrics.json"} <= set(committed)
    assert all(committed.values())
    assert changed_results(committed, dict(committed)) == []
    others = committed | {"models/ct": "0", "models/new": "1"}
    assert changed_results(committed, others) == ["models/ct", "models/new"]


def test_seconds_are_summed_by_group() -> None:
    seconds = {"train@ct": 2.0, "train@mri": 3.0, "report": 4.0}
    assert by_group(seconds) == {"train": 5.0, "report": 4.0}


def test_cpu_time_and_memory_of_children_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.reproduce.SAMPLE_SECONDS", 0.05)
    work = "import time\nwhile time.process_time() < 0.5: pass"
    command = ["sh", "-c", f"{sys.executable} -c '{work}'; true"]
    measured = measure(command, tmp_path, dict(os.environ))
    assert 0.5 <= measured["cpu_seconds"] < 5
    assert measured["seconds"] >= 0.5
    assert measured["peak_memory_bytes"] > 1e6


def test_a_busy_core_is_the_first_one_and_free_afterwards() -> None:
    before = psutil.Process().children()
    with busy_core():
        (process,) = (each for each in psutil.Process().children() if each not in before)
        assert os.sched_getaffinity(process.pid) == {min(os.sched_getaffinity(0))}
    assert not process.is_running()
