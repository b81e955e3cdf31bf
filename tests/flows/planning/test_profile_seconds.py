"""A plan takes the durations of trainings and evaluations from the profile that is set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.dvc_api.graph import Graph, Stage
from flows.planning import plan, profile_seconds
from flows.planning.profile_seconds import profile_seconds as estimate
from stages.core.params import load_params
from stages.profiles.needs import needs
from stages.profiles.schema import load_profile
from tests.conftest import ROOT
from tests.flows.scheduling.test_gpu_share import with_profile

NAMES = ("download", "resize@ct", "train@ct", "train@mri", "evaluate@ct", "evaluate@base", "report")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the profile `full`, on a machine with an H200."""
    (tmp_path / "params.yaml").write_text(with_profile(""), encoding="utf-8")
    shutil.copytree(ROOT / "infra" / "profiles", tmp_path / "infra" / "profiles")
    monkeypatch.setattr(profile_seconds, "query_gpus", lambda *_, **__: ["NVIDIA H200"])
    return tmp_path


def test_all_trainings_and_evaluations_take_the_hours_of_the_profile(root: Path) -> None:
    params = load_params(root / "params.yaml")
    profile = load_profile("full")[1]
    assert profile.model is not None
    assert profile.scale is not None
    hours = needs(params, profile.model, profile.scale, "NVIDIA H200")
    everything = [f"train@{name}" for name in params.checkpoints]
    everything += [f"evaluate@{name}" for name in params.evaluations]
    seconds = estimate(root, everything)
    trainings = [each for name, each in seconds.items() if name.startswith("train")]
    evaluations = [each for name, each in seconds.items() if name.startswith("evaluate")]
    assert sum(trainings) == pytest.approx(3600 * hours.training)
    assert sum(evaluations) == pytest.approx(3600 * hours.evaluation)
    assert seconds["evaluate@base"] > seconds["evaluate@ct"], "it answers the tests of both axes"
    assert set(estimate(root, NAMES)) == {"train@ct", "train@mri", "evaluate@ct", "evaluate@base"}


def test_nothing_is_estimated_without_the_sizes_of_a_profile(root: Path) -> None:
    shutil.copy(ROOT / "params.yaml", root)
    assert estimate(root, NAMES) == {}
    shutil.rmtree(root / "infra")
    (root / "params.yaml").write_text(with_profile(""), encoding="utf-8")
    assert estimate(root, NAMES) == {}


def test_the_plan_uses_them_in_place_of_meta(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_has_schema", lambda _: True)
    graph = Graph({name: Stage(name, "", (), (), 0, 7) for name in NAMES}, {})
    seconds, sources = plan._estimate(root, graph, NAMES, {"train@mri"})
    assert sources == {
        "download": "meta",
        "resize@ct": "meta",
        "train@ct": "profile",
        "train@mri": "run-cache",
        "evaluate@ct": "profile",
        "evaluate@base": "profile",
        "report": "meta",
    }
    assert seconds["train@ct"] < 60 * 60, "meta says an hour"
    assert seconds["download"] == 60 * 7
