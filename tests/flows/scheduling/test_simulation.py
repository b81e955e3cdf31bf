"""The scheduler on a virtual clock: starts, and the end of stages of which some are running."""

from __future__ import annotations

import os

import pytest

from flows.dvc_api.graph import Graph, Stage
from flows.scheduling.schedule import Capacity
from flows.scheduling.simulation import seconds_until_done, simulate


def test_the_simulation_respects_slots_and_starts_the_most_needed_stage_first() -> None:
    gpus = {"alone": 1, "first": 1, "second": 1, "third": 1, "cpu": 0, "both": 2}
    stages = {name: Stage(name, "", (), (), count, 1.0) for name, count in gpus.items()}
    needs = {name: frozenset[str]() for name in stages} | {
        "second": frozenset({"first"}),
        "third": frozenset({"second"}),
    }
    starts = simulate(
        Graph(stages, needs),
        list(stages),
        dict.fromkeys(stages, 10.0),
        Capacity(2, os.cpu_count() or 1),
    )
    assert starts == {
        "first": 0.0,
        "alone": 0.0,
        "cpu": 0.0,
        "second": 10.0,
        "third": 20.0,
        "both": 30.0,
    }


@pytest.mark.parametrize(
    ("running", "end"),
    [
        ((), 50.0),  # both train, one evaluates at a time, the report
        (("train@a",), 41.0),
        # the running evaluation keeps its slot, although a training is needed by more
        (("evaluate@a",), 40.0),
    ],
)
def test_running_stages_keep_their_slots(running: tuple[str, ...], end: float) -> None:
    needs: dict[str, frozenset[str]] = {
        "train@a": frozenset(),
        "train@b": frozenset(),
        "evaluate@a": frozenset({"train@a"}),
        "evaluate@b": frozenset({"train@b"}),
        "report": frozenset({"evaluate@a", "evaluate@b"}),
    }
    stages = {name: Stage(name, "", (), (), int(name != "report"), 1.0) for name in needs}
    names = [name for name in needs if "evaluate@a" not in running or name != "train@a"]
    seconds = dict.fromkeys(names, 10.0) | dict.fromkeys(running, 1.0)
    if running == ("evaluate@a",):
        seconds["evaluate@a"] = 10.0
    capacity = Capacity(gpu_slots=1, cpu_jobs=1)
    assert seconds_until_done(Graph(stages, needs), names, seconds, capacity, running) == end
