"""Ready-set scheduler over DVC's graph. Knows neither Prefect nor DVC's command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import Queue
from typing import Final, Literal

from flows.dvc_api.graph import Graph
from stages.core.errors import ExitCode

State = Literal["ran", "unchanged", "cached", "failed", "skipped", "stopped"]
SUCCESSFUL: Final = ("ran", "unchanged", "cached")


@dataclass(frozen=True)
class StageResult:
    """Outcome of a stage; `code` is the exit code of its own process, if it failed."""

    name: str
    state: State
    seconds: float = 0.0
    message: str = ""
    code: ExitCode | None = None


class StagesFailedError(Exception):
    """Some stages failed; the message names each with its cause, and the stages skipped for it.

    `codes`: exit codes of the failed stages' own processes, as far as known.
    """

    def __init__(self, message: str, codes: Iterable[ExitCode] = ()) -> None:
        """Store the message and the exit codes."""
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
    start: Callable[[str], None],
    finished: Queue[StageResult],
    skip: Callable[[StageResult], None] = lambda result: None,
    running: Iterable[str] = (),
) -> dict[str, StageResult]:
    """Run stages as soon as their dependencies among `names` succeeded and capacity is free.

    `start` starts a stage and returns at once; its result arrives in `finished`. All stages that
    need a failed one, directly or not, are skipped and passed to `skip`; the others still run.
    Among ready stages, the one that most others depend on starts first. Stages in `running`, a
    subset of `names`, have been started before. Returns name -> result.
    """
    started = set(running)
    waiting = [name for name in graph.in_order(names) if name not in started]
    selected = {*waiting, *started}
    dependents = {name: len(graph.downstream([name]) & selected) for name in waiting}
    results: dict[str, StageResult] = {}
    while waiting or started:
        for name in list(waiting):
            if cause := _failed_dependency(graph, name, results):
                message = f"not run, because {cause} {_VERBS[results[cause].state]}"
                results[name] = StageResult(name, "skipped", message=message)
                waiting.remove(name)
                skip(results[name])
        # dependencies outside of `names` are up to date
        ready = [name for name in waiting if graph.needs[name] & selected <= results.keys()]
        for name in sorted(ready, key=lambda name: -dependents[name]):
            if _fits(graph, name, started, capacity):
                waiting.remove(name)
                started.add(name)
                start(name)
        if started:
            result = finished.get()
            started.discard(result.name)
            results[result.name] = result
    return results


_VERBS: Final[Mapping[State, str]] = {
    "failed": "failed",
    "skipped": "was skipped",
    "stopped": "was stopped",
}


def _failed_dependency(graph: Graph, name: str, results: Mapping[str, StageResult]) -> str | None:
    """A dependency that did not succeed, a root cause rather than a skipped one."""
    unsuccessful = [
        each
        for each in graph.in_order(graph.upstream([name]) - {name})
        if each in results and results[each].state not in SUCCESSFUL
    ]
    return min(unsuccessful, key=lambda each: results[each].state == "skipped", default=None)


def _fits(graph: Graph, name: str, running: set[str], capacity: Capacity) -> bool:
    gpus = graph.stages[name].gpus
    used = [graph.stages[each].gpus for each in running]
    if gpus:
        # a stage that needs more slots than exist starts alone, and fails with its own message
        return sum(used) + gpus <= capacity.gpu_slots or not any(used)
    return used.count(0) < capacity.cpu_jobs
