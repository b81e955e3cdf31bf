"""The scheduler on a virtual clock: when each stage would start and when the last would end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from queue import Queue

from flows.dvc_api.graph import Graph
from flows.scheduling.schedule import Capacity, StageResult, run_ready


def simulate(
    graph: Graph, names: Iterable[str], seconds: Mapping[str, float], capacity: Capacity
) -> dict[str, float]:
    """Stage -> start time in seconds, by the flow's scheduler on a virtual clock."""
    return _simulate(graph, names, seconds, capacity, ()).starts


def seconds_until_done(
    graph: Graph,
    names: Iterable[str],
    seconds: Mapping[str, float],
    capacity: Capacity,
    running: Iterable[str],
) -> float:
    """Time until the last of `names` ends.

    `running`, a subset of `names`, have been started; `seconds` is what remains of them.
    """
    return _simulate(graph, names, seconds, capacity, running).now


def _simulate(
    graph: Graph,
    names: Iterable[str],
    seconds: Mapping[str, float],
    capacity: Capacity,
    running: Iterable[str],
) -> _Clock:
    """The clock after the last end."""
    clock = _Clock(seconds)
    started = list(running)
    for name in started:
        clock.start(name)
    run_ready(graph, names, capacity, clock.start, clock, running=started)
    return clock


class _Clock(Queue[StageResult]):
    """Queue of stage ends in order of time; `get` advances the virtual clock to the next end."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        super().__init__()
        self.now = 0.0
        self.starts: dict[str, float] = {}
        self._seconds = seconds
        self._ends: list[tuple[float, str]] = []

    def start(self, name: str) -> None:
        """Start a stage now."""
        self.starts[name] = self.now
        self._ends.append((self.now + self._seconds[name], name))

    def get(self, block: bool = True, timeout: float | None = None) -> StageResult:
        """The next end; `now` is then its time."""
        earliest = min(self._ends)
        self._ends.remove(earliest)
        self.now, name = earliest
        return StageResult(name, "ran")
