"""Plan of a run: its steps, durations and costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flows.dvc_api.client import Reasons

Estimate = Literal["recorded", "reference", "profile", "meta", "run-cache"]
"""Source of a duration: earlier runs here; the shipped ones of another machine, scaled to this one;
the estimate of the profile that is set; `meta` of dvc.yaml; the run cache, which has the outputs.
"""

VariantAnswers = dict[str, dict[str, dict[str, int]]]
"""Policy -> variant of its test questions -> `answers`, and `images` that their prompts show."""


@dataclass(frozen=True)
class Step:
    """A stage that would run.

    `why`: one line, what makes it stale and which stale stages it waits for. `after`: those stages.
    `reasons`: everything DVC reports, consequences included. `wave`: 1 for stages that can start at
    once, 2 for those that wait for them, and so on. `start`: seconds after the first start.
    `seconds`: duration. `bytes`: size of its outputs, None if unknown.
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
    """Stages that would run, by start time, and stages that are up to date.

    `slots`: where GPU stages would run; `devices`: whether those are GPUs. `seconds`: from the
    first start to the last end. `gpu_hours`: of stages that need a GPU. `bytes`: outputs written,
    as far as known; `bytes_free`: space for them. `warnings`: obstacles; `notes`: how reliable the
    estimates are. `slots_per_gpu`: stages that share a GPU; their GPU-hours are divided by it, and
    their durations are those of earlier runs, whether these shared one or not. `answers`: those of
    the evaluations among the steps; None if stage splits is yet to run.
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
    slots_per_gpu: int = 1
    answers: VariantAnswers | None = None
