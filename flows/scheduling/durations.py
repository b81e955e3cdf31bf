"""Recorded durations of stages, from which a plan and a run estimate what is left.

`.scratch/flows/durations.json` maps a stage to the seconds of its last runs, newest last. It may be
deleted at any time. `infra/durations.json` has the durations of one run on the embedded corpus: on
another machine they are wrong, but by about the same factor, which the first stages show.
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
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock
from stages.core.outputs import write_json

FILE: Final = layout.FLOWS / "durations.json"
REFERENCE: Final = Path("infra") / "durations.json"
"""Durations shipped with a corpus: {"corpus": its hash, "seconds": stage -> seconds}."""
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


def read_reference(root: Path) -> dict[str, float]:
    """Stage -> seconds of the shipped run; empty if it was one on another corpus."""
    try:
        reference = json.loads((root / REFERENCE).read_text(encoding="utf-8"))
        outs = read_dvc_file(root / layout.DATA_DVC).outs
        if not outs or reference["corpus"] != f"md5:{outs[0].md5}":
            return {}
        return {stage: float(seconds) for stage, seconds in reference["seconds"].items()}
    except (OSError, ValueError, TypeError, KeyError, InputError):
        return {}


def estimate(
    names: Iterable[str], known: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, float]:
    """Stage -> expected seconds, without the stages of which nothing is known.

    Args:
        names: Stages to estimate.
        known: Seconds of stages on this machine. Those of a stage itself are its estimate.
        reference: Seconds of stages elsewhere. Those of a stage are scaled by how much longer the
            known stages of its group took here, or all known ones if there are none of its group.
            A stage without them is like the median of the known ones of its group: train@mri is
            like train@ct.
    """
    groups: dict[str, list[str]] = {}
    for name in known:
        groups.setdefault(_group(name), []).append(name)
    overall = _scale(known, known, reference) or 1.0
    expected: dict[str, float] = {}
    for name in names:
        members = groups.get(_group(name), [])
        if name in known:
            expected[name] = known[name]
        elif name in reference:
            expected[name] = reference[name] * (_scale(members, known, reference) or overall)
        elif members:
            expected[name] = median(known[member] for member in members)
    return expected


def _scale(
    names: Iterable[str], known: Mapping[str, float], reference: Mapping[str, float]
) -> float | None:
    """How much longer the stages in both took here than in the reference; None if none is."""
    shared = [name for name in names if name in known and name in reference]
    there = sum(reference[name] for name in shared)
    return sum(known[name] for name in shared) / there if there else None


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
