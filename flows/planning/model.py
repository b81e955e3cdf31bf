"""A plan of what would run: its steps, durations and costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flows.dvc_api.client import Reasons

Estimate = Literal["recorded", "meta", "run-cache"]
"""Where a duration comes from: earlier runs here; `meta` of dvc.yaml; or nothing is computed, as
DVC has the outputs.
"""


@dataclass(frozen=True)
class Step:
    """A stage that would run.

    `why`: in a line, what makes it stale and which stale stages it waits for. Those are in `after`;
    `reasons` is all that DVC says, consequences included. `wave`: 1 for what can begin at once, 2
    for what waits for those, and so on. `start` is an offset and `seconds` a duration, both in
    seconds. `bytes`: the size of the outputs that are written again, None if it was never known.
    """

    name: str
    description: str
    why: str
    reasons: Reasons
    after: tuple[str, ...]
    wave: int
    start: float
    seconds: float
    estimate: Estimate
    gpus: int
    bytes: int | None


@dataclass(frozen=True)
class Plan:
    """What would run, by start, and what is up to date.

    `slots`: where GPU stages would run; `devices`: whether those are GPUs. `seconds` from the first
    start to the last end; `gpu_hours` of the stages that need one; `bytes` of all outputs written
    again, as far as known, and `bytes_free` for them. `warnings`: what stands in the way; `notes`:
    how sure all this is.
    """

    steps: tuple[Step, ...]
    up_to_date: tuple[str, ...]
    slots: tuple[str, ...]
    devices: bool
    seconds: float
    gpu_hours: float
    bytes: int
    bytes_free: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
