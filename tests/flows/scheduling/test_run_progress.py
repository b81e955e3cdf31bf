"""The time left of a run: from records, from the progress of running stages, or unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dvc_api.graph import Graph, Stage
from flows.scheduling import durations
from flows.scheduling.run_progress import RunProgress, TimeLeft
from flows.scheduling.schedule import Capacity
from stages.core.iteration.progress import Progress

NEEDS: dict[str, frozenset[str]] = {
    "train@a": frozenset(),
    "train@b": frozenset(),
    "train@c": frozenset(),
    "report": frozenset({"train@a", "train@b", "train@c"}),
}
STAGES = {name: Stage(name, "", (), (), int(name != "report"), 1.0) for name in NEEDS}


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_run(root: Path, clock: Clock) -> RunProgress:
    """Three trainings in two slots, then a report."""
    return RunProgress(root, Graph(STAGES, NEEDS), list(NEEDS), Capacity(2, 2), clock)


def step(done: int, left: int) -> Progress:
    return Progress("a", "step", done, 10, "", left)


def test_on_a_first_run_the_time_left_is_unknown_until_a_stage_reports(tmp_path: Path) -> None:
    clock = Clock()
    run = make_run(tmp_path, clock)
    run.start("train@a")
    run.start("train@b")
    assert run.left() == TimeLeft(0.0, 4)
    clock.now = 10.0
    run.report("train@a", step(2, 40))
    # a takes 50 s in all, and so b and c; c starts when a and b end after 40 s
    assert run.left() == TimeLeft(90.0, 1)
    clock.now = 20.0
    assert run.left() == TimeLeft(80.0, 1)
    clock.now = 30.0
    run.report("train@b", step(5, 30))  # 60 s in all: c takes the median, 55 s
    assert run.left() == TimeLeft(20.0 + 55.0, 1)


def test_finished_stages_stand_for_their_group(tmp_path: Path) -> None:
    clock = Clock()
    run = make_run(tmp_path, clock)
    run.start("train@a")
    clock.now = 30.0
    durations.record(tmp_path, "train@a", 30.0)
    run.finish("train@a")
    run.start("train@b")
    assert (run.done, run.total, run.elapsed) == (1, 4, 30.0)
    assert run.left() == TimeLeft(30.0, 1)


def test_a_recorded_duration_counts_as_long_as_progress_does_not_say_more(tmp_path: Path) -> None:
    for name, seconds in (("train@a", 20.0), ("train@b", 20.0), ("train@c", 20.0), ("report", 5.0)):
        durations.record(tmp_path, name, seconds)
    clock = Clock()
    run = make_run(tmp_path, clock)
    assert run.left() == TimeLeft(45.0, 0)
    for name in ("train@a", "train@b"):
        run.start(name)
    clock.now = 5.0
    # the first of several parts of the work, done in a second
    run.report("train@a", step(10, 0))
    run.report("train@b", step(1, 0))
    assert run.left() == TimeLeft(40.0, 0)
    run.report("train@a", step(1, 100))
    run.report("train@b", step(1, 100))
    assert run.left() == TimeLeft(125.0, 0)
    clock.now = 500.0  # late: not less than nothing
    assert run.left() == TimeLeft(25.0, 0)


def test_running_stages_are_listed_with_their_last_progress(tmp_path: Path) -> None:
    clock = Clock()
    run = make_run(tmp_path, clock)
    run.start("train@b")
    clock.now = 2.0
    run.start("train@a")
    run.report("train@a", step(3, 7))
    run.report("train@c", step(3, 7))  # not running
    clock.now = 5.0
    listed = [(stage.name, stage.progress, seconds) for stage, seconds in run.running()]
    assert listed == [("train@b", None, 5.0), ("train@a", step(3, 7), 3.0)]
    for _ in range(2):  # a task that crashed is finished twice
        run.finish("train@b")
    assert [stage.name for stage, _ in run.running()] == ["train@a"]
    assert run.done == 1


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (TimeLeft(90.0, 0), "about 90 s left"),
        (TimeLeft(240.0, 3), "at least 4 min left"),
        (TimeLeft(0.0, 3), "time left unknown"),
        (TimeLeft(0.0, 0), "about 0 s left"),
    ],
)
def test_an_unknown_time_is_said_to_be_unknown(left: TimeLeft, text: str) -> None:
    assert str(left) == text
