"""Ready-set scheduler: order, capacity, and the stages that a failure skips."""

from __future__ import annotations

from queue import Queue

from hypothesis import given
from hypothesis import strategies as st

from flows.dvc_api.graph import Graph, Stage
from flows.scheduling.schedule import Capacity, StageResult, run_ready


def graph(needs: dict[str, set[str]], gpus: dict[str, int] | None = None) -> Graph:
    """A graph of stages; `needs` lists dependencies before the stages that need them."""
    stages = {name: Stage(name, "", (), (), (gpus or {}).get(name, 0), 1) for name in needs}
    return Graph(stages, {name: frozenset(each) for name, each in needs.items()})


def simulate(
    stages: Graph, names: set[str], capacity: Capacity, failing: frozenset[str] = frozenset()
) -> tuple[dict[str, StageResult], list[str], list[set[str]]]:
    """Results, start order, and running stages at each start; stages end in order of start."""
    running: list[str] = []
    order: list[str] = []
    together: list[set[str]] = []

    class OneByOne(Queue[StageResult]):
        def get(self, block: bool = True, timeout: float | None = None) -> StageResult:
            name = running.pop(0)
            return StageResult(name, "failed" if name in failing else "ran")

    def start(name: str) -> None:
        running.append(name)
        order.append(name)
        together.append(set(running))

    return run_ready(stages, names, capacity, start, OneByOne()), order, together


PIPELINE: dict[str, set[str]] = {
    "split": set(),
    "base": set(),
    "train@a": {"split", "base"},
    "train@b": {"split", "base"},
    "evaluate@a": {"train@a"},
    "evaluate@b": {"train@b"},
    "report": {"evaluate@a", "evaluate@b"},
}
GPUS = {"train@a": 1, "train@b": 1, "evaluate@a": 1, "evaluate@b": 1}


def test_a_failure_skips_only_the_stages_that_need_it() -> None:
    results, order, _ = simulate(
        graph(PIPELINE, GPUS), set(PIPELINE), Capacity(2, 2), failing=frozenset({"train@a"})
    )
    assert {name: result.state for name, result in results.items()} == {
        **dict.fromkeys(("split", "base", "train@b", "evaluate@b"), "ran"),
        "train@a": "failed",
        **dict.fromkeys(("evaluate@a", "report"), "skipped"),
    }
    assert "train@a failed" in results["report"].message, "the root cause"
    assert "evaluate@a" not in order


def test_dependencies_that_are_not_selected_count_as_done() -> None:
    results, order, _ = simulate(graph(PIPELINE, GPUS), {"evaluate@a", "report"}, Capacity(1, 1))
    assert order == ["evaluate@a", "report"]
    assert set(results) == {"evaluate@a", "report"}


def test_a_stage_that_needs_more_gpus_than_exist_starts_alone() -> None:
    results, _, together = simulate(
        graph({"a": set(), "big": set()}, {"a": 1, "big": 4}), {"a", "big"}, Capacity(2, 1)
    )
    assert set(results) == {"a", "big"}
    assert {"a", "big"} not in together


@given(st.data())
def test_every_stage_starts_once_after_its_dependencies_and_within_capacity(
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(1, 9))
    names = [f"s{number}" for number in range(count)]
    needs = {
        name: set(
            data.draw(st.lists(st.sampled_from(names[:number]), unique=True)) if number else []
        )
        for number, name in enumerate(names)
    }
    gpus = {name: data.draw(st.integers(0, 2)) for name in names}
    capacity = Capacity(2, data.draw(st.integers(1, 3)))
    failing = frozenset(data.draw(st.lists(st.sampled_from(names), unique=True)))
    stages = graph(needs, gpus)
    results, order, together = simulate(stages, set(names), capacity, failing)
    assert sorted(results) == sorted(names)
    assert sorted(order) == sorted(name for name in names if results[name].state != "skipped")
    for name in order:
        assert all(
            order.index(each) < order.index(name) and results[each].state == "ran"
            for each in needs[name]
        )
    for name in names:
        assert (results[name].state == "skipped") == bool(
            (stages.upstream([name]) - {name}) & failing & set(order)
        )
    for running in together:
        assert sum(gpus[name] for name in running) <= 2
        assert sum(not gpus[name] for name in running) <= capacity.cpu_jobs
