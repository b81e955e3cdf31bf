"""Recorded durations of stages, from which a plan estimates the next run.

`.scratch/flows/durations.json` maps a stage to the seconds of its last runs, newest last. It may be
deleted at any time.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from statistics import median
from typing import Final

from stages.core import layout
from stages.core.file_lock import exclusive_lock
from stages.core.outputs import write_json

FILE: Final = layout.SCRATCH / "flows" / "durations.json"
MAX_RUNS: Final = 5
"""Runs recorded per stage."""


def record(root: Path, stage: str, seconds: float) -> None:
    """Record that a stage of the workspace `root` ran for `seconds`; safe to call concurrently.

    A corrupt file is moved to `durations.json.broken`. Failures are logged, never raised.
    """
    path = root / FILE
    try:
        with exclusive_lock(path.with_suffix(".lock")):  # not the file itself: it is replaced
            try:
                runs = _read(path)
            except ValueError as error:
                aside = path.with_name(path.name + ".broken")
                path.replace(aside)
                logging.getLogger(__name__).warning(
                    "%s is corrupt (%s): moved to %s", path, error, aside.name
                )
                runs = {}
            runs[stage] = [*runs.get(stage, []), round(seconds, 3)][-MAX_RUNS:]
            write_json(path, dict(sorted(runs.items())))
    except OSError as error:
        logging.getLogger(__name__).warning(
            "the duration of %s could not be recorded: %s", stage, error
        )


def read(root: Path) -> dict[str, float]:
    """Stage -> median seconds of its last runs; empty if the file is missing or corrupt."""
    try:
        return {stage: median(seconds) for stage, seconds in _read(root / FILE).items() if seconds}
    except (OSError, ValueError):
        return {}


def _read(path: Path) -> dict[str, list[float]]:
    """The recorded runs; ValueError if the file is corrupt."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(runs, dict) or not all(
        isinstance(each, list) and all(map(_is_duration, each)) for each in runs.values()
    ):
        raise ValueError("expected an object of lists of seconds")
    return runs


def _is_duration(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
