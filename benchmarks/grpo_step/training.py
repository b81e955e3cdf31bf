"""Consecutive steps of a training as its profile runs it, with all that is done ahead of a step.

Workers open and process images while the step before computes, and the reference takes the prompts
of several steps at once. So a step of a training takes less than a single one, which
`measure.Bench.timed` times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from benchmarks.grpo_step.clock import PeakMemory, bytes_outside_allocator
from benchmarks.grpo_step.trace import trace
from benchmarks.grpo_step.trainers import TrainerStep
from stages.core.params import Grpo
from stages.grpo.data.dataset import train_dataset
from stages.grpo.reference import ReferenceAhead

if TYPE_CHECKING:
    from benchmarks.grpo_step.measure import Bench

LEAST_STEPS: Final = 8
"""Steps that are timed, at least."""
_WARM_UP: Final = 1
"""Steps before: the first one fills what is computed ahead, and allocates for it."""


def step_count(grpo: Grpo) -> int:
    """Steps that are timed: as often as the reference takes several at once, a whole number."""
    return grpo.reference_steps * -(-LEAST_STEPS // grpo.reference_steps)


class Training(TrainerStep):
    """A training with its own settings, of which the caller takes one optimiser step at a time."""

    def __init__(self, bench: Bench, grpo: Grpo, foreseen: bool) -> None:
        """`grpo`: the profile's, at the sizes of the benchmark; `foreseen`: see `TrainerStep`."""
        steps = _WARM_UP + step_count(grpo) + grpo.reference_steps
        prompts = grpo.prompts_per_device * grpo.gradient_accumulation_steps
        rows = bench.question_rows(steps * prompts)
        super().__init__(
            bench.policy,
            bench.reference,
            bench.processor,
            train_dataset(rows, bench.plan.style),
            # TRL would load a reference from files: TrainerStep sets beta and the reference
            grpo.model_copy(update={"beta": 0.0}),
            bench.clock,
            bench.folder / "state",
            bench.setting.grpo.beta,
            style=bench.plan.style,
            foreseen=foreseen,
        )
        self._grpo = grpo
        self._update = bench.update
        trainer: Any = self.trainer
        trainer.current_gradient_accumulation_steps = grpo.gradient_accumulation_steps
        # workers end with the loader, as other steps are timed afterwards
        trainer.args.dataloader_persistent_workers = False
        if grpo.batches_ahead > 1:
            trainer._ahead = ReferenceAhead(grpo.batches_ahead, trainer.eos_token_ids)
        if self.favoured is not None:
            # the reference scores drafts of the first step for all that it takes at once
            completion = [self.favoured] * grpo.max_completion_length
            trainer._drafts.learn([completion] * grpo.num_generations)

    @contextmanager
    def running(self) -> Iterator[Callable[[], None]]:
        """A function that takes the next optimiser step, from the loader to updated weights."""
        trainer: Any = self.trainer
        device = trainer.accelerator.device
        self.choose_tower()
        batches: Any = iter(trainer.get_train_dataloader())

        def step() -> None:
            passes, _ = trainer.get_batch_samples(
                batches, self._grpo.gradient_accumulation_steps, device
            )
            losses = [trainer.training_step(trainer.model, each, None) for each in passes]
            self._update()
            # logged after each step, which waits for the GPU
            float(torch.stack(losses).sum())

        with self.foreseen(), self.prepared():
            try:
                yield step
            finally:
                batches.close()
                trainer._buffered_inputs = trainer._rollout = trainer._ahead = None


def training_settings(bench: Bench, group: int, completion: int) -> Grpo:
    """The profile's settings of `grpo` at these sizes, and without saved states."""
    plan = bench.plan
    sizes = {
        "num_generations": group,
        "max_completion_length": completion,
        "max_prompt_length": 2**15,
        "prompts_per_device": plan.prompts // plan.passes,
        "gradient_accumulation_steps": plan.passes,
        "num_train_epochs": 1.0,
        "max_steps": -1,
        "save_steps": 0,
        "save_minutes": None,
    }
    return Grpo.model_validate(bench.setting.grpo.model_dump() | plan.ours | sizes)


def measure_training(bench: Bench, group: int, completion: int) -> dict[str, Any]:
    """Seconds per step, the mean over consecutive ones, their kernels and peak memory.

    `drafted`: share of completions that were foreseen; `forwards`: passes that sampled a token.
    """
    grpo = training_settings(bench, group, completion)
    training = Training(bench, grpo, foreseen=bench.plan.drafted)
    count = step_count(grpo)
    clock = bench.clock
    clock.by_part = False
    try:
        with training.running() as step, PeakMemory(bench.device) as peak:
            for _ in range(_WARM_UP):
                step()
            clock.reset()
            for _ in range(count):
                step()
            seconds = clock.stop()["step"] / count
    finally:
        clock.by_part = True
    return {
        "seconds": seconds,
        "steps": count,
        "reference_steps": grpo.batches_ahead,
        "loader_workers": grpo.loader_workers,
        **training.sampled,
        "memory": {"above_start": peak.above_start, "total": peak.total},
    }


def trace_training(bench: Bench, group: int, completion: int) -> dict[str, float] | None:
    """Kernels per step, as `trace.trace` counts them, in as many steps as are timed."""
    grpo = training_settings(bench, group, completion)
    count = step_count(grpo)
    if bench.device.type != "cuda":
        return None
    training = Training(bench, grpo, foreseen=bench.plan.drafted)

    def steps(step: Callable[[], None]) -> None:
        for _ in range(count):
            step()

    bench.clock.by_part = False
    try:
        with training.running() as step:
            step()
            kernels = trace(bench.device, lambda: steps(step))
    finally:
        bench.clock.by_part = True
    return kernels and {name: number / count for name, number in kernels.items()}


def measure_limit(bench: Bench, group: int) -> dict[str, int]:
    """Peak memory of a step whose completions all run to the profile's limit, none foreseen.

    Rare in a training without thoughts, but what its GPU must have room for. `total`: bytes of
    torch's allocator, on a CPU of the process; `outside`: what the GPU holds besides, CUDA and its
    libraries (and other processes, if there are any).
    """
    limit = bench.setting.grpo.max_completion_length
    grpo = training_settings(bench, group, limit)
    training = Training(bench, grpo, foreseen=False)
    bench.clock.by_part = False
    try:
        with training.running() as step, PeakMemory(bench.device) as peak:
            step()
    finally:
        bench.clock.by_part = True
    return {
        "completion_tokens": limit,
        "total": peak.total,
        "outside": bytes_outside_allocator(bench.device),
    }
