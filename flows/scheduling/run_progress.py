"""Progress of a run: which stages are running, how far they are, and the time left for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from flows.dvc_api.graph import Graph
from flows.scheduling import durations
from flows.scheduling.schedule import Capacity
from flows.scheduling.simulation import seconds_until_done
from stages.core.iteration.progress import Progress


@dataclass(frozen=True)
class RunningStage:
    """A running stage; times are those of the run's clock.

    `progress`: what it reported last, at the time `reported`; None if it has reported nothing.
    """

    name: str
    started: float
    progress: Progress | None = None
    reported: float = 0.0


@dataclass(frozen=True)
class TimeLeft:
    """Seconds until the run ends, without the `unknown` stages, whose durations nothing tells."""

    seconds: float
    unknown: int

    def __str__(self) -> str:
        """For people: "about 4 min left", "at least 4 min left", "time left unknown"."""
        if not self.unknown:
            return f"about {durations.format_duration(self.seconds)} left"
        if self.seconds:
            return f"at least {durations.format_duration(self.seconds)} left"
        return "time left unknown"


class RunProgress:
    """State of one run's stages; threads may share it."""

    def __init__(
        self,
        root: Path,
        graph: Graph,
        names: Sequence[str],
        capacity: Capacity,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names`: the stages to run, in the workspace `root`; `clock`: seconds."""
        self.total = len(names)
        self._root = root
        self._graph = graph
        self._capacity = capacity
        self._clock = clock
        self._began = clock()
        self._lock = Lock()
        self._unfinished = list(names)
        self._running: dict[str, RunningStage] = {}
        self._reference = durations.read_reference(root)
        self._known = durations.read(root)

    def start(self, name: str) -> None:
        """A stage starts now."""
        with self._lock:
            self._running[name] = RunningStage(name, self._clock())

    def report(self, name: str, progress: Progress) -> None:
        """A running stage reports how far it is."""
        with self._lock:
            if name in self._running:
                now = self._clock()
                self._running[name] = replace(self._running[name], progress=progress, reported=now)

    def finish(self, name: str) -> None:
        """A stage has ended, in whatever way, or will not run."""
        known = durations.read(self._root)
        with self._lock:
            self._known = known
            self._running.pop(name, None)
            if name in self._unfinished:
                self._unfinished.remove(name)

    @property
    def done(self) -> int:
        """Number of stages that have ended."""
        return self.total - len(self._unfinished)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._began

    def running(self) -> list[tuple[RunningStage, float]]:
        """The running stages in order of their start, each with the seconds since."""
        with self._lock:
            now = self._clock()
            return [(stage, now - stage.started) for stage in self._running.values()]

    def left(self) -> TimeLeft:
        """Time until the run ends, if its stages take as long as expected.

        Expected is what is recorded on this machine; else what the run's progress suggests, or the
        shipped durations times the factor by which known stages were slower or faster here.
        """
        with self._lock:
            unfinished = list(self._unfinished)
            running = dict(self._running)
            known = dict(self._known)
            now = self._clock()
        projected = {
            stage.name: stage.reported - stage.started + stage.progress.left
            for stage in running.values()
            if stage.progress
        }
        expected = durations.estimate(unfinished, projected | known, self._reference)
        seconds = dict.fromkeys(unfinished, 0.0) | expected
        for stage in running.values():
            rest = max(seconds[stage.name] - (now - stage.started), 0.0)
            if stage.progress:
                own = max(stage.progress.left - (now - stage.reported), 0.0)
                # work in several parts reports each by itself: a recorded run knows the others
                rest = max(own, rest) if stage.name in known else own
            seconds[stage.name] = rest
        until_done = seconds_until_done(
            self._graph, unfinished, seconds, self._capacity, running=running
        )
        return TimeLeft(until_done, len(unfinished) - len(expected))
