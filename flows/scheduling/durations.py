"""Recorded durations of stages, from which a plan estimates the next run.

`.scratch/flows/durations.json` maps a stage to the seconds of its last runs, newest last. It may be
deleted at any time.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
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


def estimate_left(
    gpu_stages: Iterable[str],
    other_stages: Iterable[str],
    known: Mapping[str, float],
    slots: int,
    cores: int,
) -> tuple[float, int]:
    """Seconds until stages are done if slots and cores are never idle, and how many are unknown.

    A stage that has never run is like the median of those of its group that have: train@mri is like
    train@ct. One of whose group none has run is unknown, and not in the sum.
    """
    groups: dict[str, list[float]] = {}
    for name, seconds in known.items():
        groups.setdefault(_group(name), []).append(seconds)
    total = 0.0
    unknown = 0
    for stages, workers in ((gpu_stages, slots), (other_stages, cores)):
        for name in stages:
            if _group(name) not in groups:
                unknown += 1
                continue
            total += (known.get(name) or median(groups[_group(name)])) / max(workers, 1)
    return total, unknown


def format_duration(seconds: float) -> str:
    """Human-readable duration: "0 s", "48 s", "12 min", "3 h 05 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _group(stage: str) -> str:
    return stage.partition("@")[0]


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
