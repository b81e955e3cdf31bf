"""Which stage may begin now: the ready set over DVC's graph. No Prefect and no DVC in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import Queue
from typing import Final, Literal

from flows.dvc_api.graph import Graph
from stages.core.errors import ExitCode

State = Literal["ran", "unchanged", "cached", "failed", "skipped", "stopped"]
DONE: Final = ("ran", "unchanged", "cached")


@dataclass(frozen=True)
class StageResult:
    """Outcome of a stage: status, seconds and reason.

    `code`: exit code of its own process, if it failed.
    """

    name: str
    state: State
    seconds: float = 0.0
    message: str = ""
    code: ExitCode | None = None


class StagesFailedError(Exception):
    """Some stages failed; the message names each with its reason, and what was therefore not run.

    `codes` are the exit codes of the stages that failed, where their own processes had one.
    """

    def __init__(self, message: str, codes: Iterable[ExitCode] = ()) -> None:
        """Keep the codes beside the words."""
        super().__init__(message)
        self.codes = frozenset(codes)


@dataclass(frozen=True)
class Capacity:
    """Parallelism: `gpu_slots` for stages that need GPUs, `cpu_jobs` for the others."""

    gpu_slots: int
    cpu_jobs: int


def run_ready(
    graph: Graph,
    names: Iterable[str],
    capacity: Capacity,
    begin: Callable[[str], None],
    ended: Queue[StageResult],
    skip: Callable[[StageResult], None] = lambda result: None,
) -> dict[str, StageResult]:
    """Run stages as soon as their dependencies among `names` are done and capacity is free.

    Returns name -> result.

    `begin` starts a stage and returns at once; its end arrives in `ended`. A stage that fails holds
    up none but those that need it, directly or not: they are skipped, and `skip` is told. Of stages
    that could begin, the one most others wait for goes first.
    """
    waiting = graph.in_order(names)
    among = set(waiting)
    weight = {name: len(graph.downstream([name]) & among) for name in waiting}
    results: dict[str, StageResult] = {}
    running: set[str] = set()
    while waiting or running:
        for name in list(waiting):
            if missing := _failed(graph, name, results):
                results[name] = StageResult(
                    name,
                    "skipped",
                    message=f"not run, because {missing} {_HOW[results[missing].state]}",
                )
                waiting.remove(name)
                skip(results[name])
        ready = [
            name for name in waiting if all(each in results for each in graph.needs[name] & among)
        ]
        for name in sorted(ready, key=lambda name: -weight[name]):
            if _fits(graph, name, running, capacity):
                waiting.remove(name)
                running.add(name)
                begin(name)
        if running:
            result = ended.get()
            running.discard(result.name)
            results[result.name] = result
    return results


_HOW: Final[Mapping[State, str]] = {
    "failed": "failed",
    "skipped": "was skipped",
    "stopped": "was stopped",
}


def _failed(graph: Graph, name: str, results: Mapping[str, StageResult]) -> str | None:
    """A dependency that did not succeed.

    The root cause rather than a skipped one, if there is one.
    """
    bad = [
        each
        for each in graph.in_order(graph.upstream([name]) - {name})
        if each in results and results[each].state not in DONE
    ]
    return min(bad, key=lambda each: results[each].state == "skipped", default=None)


def _fits(graph: Graph, name: str, running: set[str], capacity: Capacity) -> bool:
    gpus = graph.stages[name].gpus
    used = [graph.stages[each].gpus for each in running]
    if gpus:
        # one that needs more than there is has to begin to be refused by name
        return sum(used) + gpus <= capacity.gpu_slots or not any(used)
    return used.count(0) < capacity.cpu_jobs
