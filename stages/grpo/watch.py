"""Symptoms of a training that learns nothing, has become ten times slower, or has lost its weights.

The last one stops it, the others are warnings.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from typing import Any, Final

from transformers import TrainerCallback

from stages.core.errors import InputError

PATIENCE: Final = 10
"""Consecutive logged steps after which a symptom is reported, once."""
TRUNCATED: Final = 0.9
"""Share of completions that reach the limit on their length, at which most have no answer."""
FIRST_STEPS: Final = 5
"""Steps whose median duration later ones are compared with; the very first is left out."""
SLOWDOWN: Final = 10
"""Factor by which steps have to be slower than those."""
SLOW_STEPS: Final = 3
"""Consecutive slow steps after which this is reported, once."""

_BUSY: Final = (
    "another program may be using the processor: end it, or set OMP_WAIT_POLICY=PASSIVE, or fewer"
    " base.threads"
)


class TrainingWatch(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Watches the logged numbers and the duration of steps; results do not depend on it."""

    def __init__(self, name: str, max_completion_length: int | None) -> None:
        """`max_completion_length`: of a GRPO training, in tokens; None for other methods."""
        self._name = name
        self._limit = max_completion_length
        self._counts: dict[str, int] = {}
        self._reported: set[str] = set()
        self._first: list[float] = []
        self._start: float | None = None
        self._steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the time."""
        self._start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare the step's duration with those of the first ones."""
        if self._start is None or not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self._start
        self._steps += 1
        if 1 < self._steps <= FIRST_STEPS + 1:
            self._first.append(seconds)
        elif self._first:
            usual = statistics.median(self._first)
            self._count(
                "slow",
                seconds > SLOWDOWN * usual,
                SLOW_STEPS,
                f"steps take {seconds:.1f} s instead of {usual:.1f} s: {_BUSY}",
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Count steps whose completions are truncated, or whose groups have no spread.

        Raises InputError, in all processes, for a loss or gradient that is not finite. A step is
        logged before its state is saved, so no saved state has such weights.
        """
        logs = logs or {}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise InputError(
                    f"{self._name}: {name} is {logs[name]} at step {state.global_step}, so the"
                    " weights are of no use: lower the learning rate, or compute in float32"
                    " (grpo.bf16: false); a re-run resumes from the last saved state"
                )
        if not logs or self._limit is None or not state.is_world_process_zero:
            return
        self._count(
            "truncated",
            logs.get("completions/clipped_ratio", 0.0) >= TRUNCATED,
            PATIENCE,
            f"completions reach grpo.max_completion_length = {self._limit} before they end, so"
            " most have no answer: raise it, or set prompt.style to no-think",
        )
        self._count(
            "no spread",
            logs.get("frac_reward_zero_std", 0.0) >= 1.0,
            PATIENCE,
            "all completions of a prompt get the same reward, so there is nothing to learn: check"
            " grpo.rewards, and read completions in a report of the base",
        )

    def _count(self, symptom: str, present: bool, patience: int, warning: str) -> None:
        self._counts[symptom] = self._counts.get(symptom, 0) + 1 if present else 0
        if self._counts[symptom] >= patience and symptom not in self._reported:
            self._reported.add(symptom)
            print(f"{self._name}: warning: for {patience} steps, {warning}", file=sys.stderr)
