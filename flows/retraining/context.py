"""What all steps of one retraining share: the workspace, the options and the record of what ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from flows.retraining.decision import Decision
from flows.retraining.validate import UnusedQuestions
from flows.scheduling.slots import Slots

Start = Literal["base", "champion"]


class Result(Protocol):
    """Result of a stage."""

    @property
    def name(self) -> str:
        """Name of the stage."""

    @property
    def state(self) -> str:
        """Such as "ran", "unchanged", "cached"."""


Reproduce = Callable[[list[str] | None], Sequence[Result]]
"""Brings stages (None: all) and their dependencies up to date; raises if one fails."""


@dataclass(frozen=True)
class RetrainOptions:
    """Options of a retraining.

    `dry_run`: report only, change nothing; `force`: continue without new data or with data refused
    before; `start_from`: initial policy of affected trainings, None for the one in params.yaml.
    """

    dry_run: bool = False
    force: bool = False
    start_from: Start | None = None


@dataclass(frozen=True)
class RetrainOutcome:
    """Outcome of a retraining: `name` (NothingNew, DryRun, Promoted, ...) and a `message`."""

    name: str
    message: str
    decision: Decision | None = None


@dataclass
class Retraining:
    """A retraining of the workspace `root`; the caller holds its lock (`snapshot.champion_lock`).

    `slots`: GPU slots for evaluating champions; `report`: receives progress messages; `identity`:
    of the source as probed, None if unknown; `stale_before`: stages that were stale before the new
    data; `unused`: new questions that no released split has, None if there are none.
    """

    root: Path
    options: RetrainOptions
    reproduce: Reproduce
    slots: Slots
    report: Callable[[str], None]
    identity: str | None = None
    stale_before: list[str] = field(default_factory=list)
    unused: UnusedQuestions | None = None
    _states: dict[str, str] = field(default_factory=dict)

    def bring_up_to_date(self, only: list[str] | None = None) -> None:
        """Reproduce stages (None: all) and record how each ended; raises if one fails."""
        for result in self.reproduce(only):
            if self._states.get(result.name) != "ran":
                self._states[result.name] = result.state

    def stages_by_state(self) -> dict[str, list[str]]:
        """State -> names of the stages that ended in it."""
        return {
            state: [name for name, each in self._states.items() if each == state]
            for state in dict.fromkeys(self._states.values())
        }
