"""Events in DVC's output: how a stage ended, or why it failed."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Final, Literal

from stages.core.errors import ExitCode
from stages.core.outcome import StageOutcome


class DvcEvent(Enum):
    """Event of a stage in DVC's output."""

    BEGAN = auto()
    """DVC runs the stage's command."""
    UNCHANGED = auto()
    CACHED = auto()
    """DVC restores the outputs from the run cache."""
    LOCKED = auto()
    """DVC failed: another DVC command holds its lock, or a path that the stage needs."""
    DISK_FULL = auto()
    """DVC failed: no space for a file that it copies."""


_EVENTS: Final[tuple[tuple[re.Pattern[str], DvcEvent], ...]] = (
    (re.compile(r"Running stage '"), DvcEvent.BEGAN),
    (re.compile(r"(Stage )?'.*' didn't change, skipping"), DvcEvent.UNCHANGED),
    (re.compile(r"Stage '.*' is cached - skipping run"), DvcEvent.CACHED),
    (
        re.compile(r"ERROR: .*(Unable to acquire lock|' is busy, it is being blocked by:)"),
        DvcEvent.LOCKED,
    ),
    (re.compile(r"ERROR: .*\[Errno (28|122)\]"), DvcEvent.DISK_FULL),
)


def read_event(line: str) -> DvcEvent | None:
    """Event in a line of DVC's output.

    DVC exits with 255 for every error and writes no result file, so its text is the only source.
    It is parsed only here, and only for what DVC does itself: the end of a stage's own process is
    in its outcome file. tests/flows/dvc_api/test_events.py makes the installed DVC print each line.
    """
    return next((event for pattern, event in _EVENTS if pattern.match(line)), None)


def final_state(events: Collection[DvcEvent]) -> Literal["ran", "unchanged", "cached"]:
    """How a stage that did not fail ended."""
    if DvcEvent.BEGAN not in events:
        if DvcEvent.CACHED in events:
            return "cached"
        if DvcEvent.UNCHANGED in events:
            return "unchanged"
    return "ran"  # DVC prints no event when an import starts


def explain(
    stage: str,
    code: int,
    outcome: StageOutcome | None,
    events: Collection[DvcEvent],
    tail: list[str],
) -> str:
    """Cause and remedy of a failed stage, then its last lines.

    The stage's own outcome takes precedence over DVC's events.
    """
    return f"{stage} failed: {_reason(code, outcome, events)}\n\n" + "\n".join(tail)


def _reason(code: int, outcome: StageOutcome | None, events: Collection[DvcEvent]) -> str:
    own = outcome.code if outcome else ExitCode.DONE
    signals = (ExitCode.INTERRUPTED, ExitCode.KILLED, ExitCode.TERMINATED)
    if own == ExitCode.KILLED or code in signals:
        return "it was killed from outside. Re-run to resume from its saved state"
    if outcome and outcome.message and own != ExitCode.CRASHED:
        return outcome.message
    if outcome and own == ExitCode.CRASHED:
        return f"{outcome.message or 'it crashed'} (see the lines below)"
    if DvcEvent.LOCKED in events:
        return (
            "another DVC command holds a file it needs. Find it with `med-r1 doctor`, let it end,"
            " and re-run"
        )
    if DvcEvent.DISK_FULL in events:
        return (
            "the disk is full; no half-written output remains. Free some space (`dvc gc"
            " --workspace` deletes old results) and re-run"
        )
    return "see the lines below"
