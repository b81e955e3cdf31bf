"""A training that is killed goes on where it was, to the weights it would have had.

transformers restores optimiser, scheduler, random state and the place in an epoch. What it does not
know of is added here: for GRPO, TRL's count of micro-steps and the completions a batch still has to
learn from; the order of the second and later epochs; which checkpoint was written whole; and the
weights of a Qwen2-VL, which it saves but does not find again. Checkpoints are safetensors and JSON,
but for the optimiser and random state, which transformers reads back as tensors only
(`weights_only`).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback
from trl.trainer.utils import RepeatSampler

from stages.core.outputs import write_json
from stages.policy.prompt_batch import PromptBatch

WHOLE: Final = "whole.json"
"""Written last into a checkpoint: its files and their sizes in bytes."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint; half-written ones are deleted."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if _is_whole(checkpoint):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


class Resumable:
    """Mix-in before a TRL trainer that makes `train(resume_from_checkpoint=...)` exact."""

    def train(self, resume_from_checkpoint: str | None = None, **more: Any) -> Any:
        """Train; from a checkpoint `newest_checkpoint` gave, if any."""
        trainer: Any = self
        trainer.add_callback(_EpochOfSampler(trainer))
        trainer.add_callback(_NoSaveAtTheEnd())
        if resume_from_checkpoint is not None:
            self.recall(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **more)  # type: ignore[misc]

    def keep(self, checkpoint: Path) -> None:
        """Save state beyond weights, optimiser and position.

        Nothing here, subclasses override it.
        """

    def recall(self, checkpoint: Path) -> None:
        """Take up again what `keep` wrote."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """A state is no model to be published."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the policy's weights, or fail.

        transformers writes Qwen2-VL under the names of its first release and, on resuming, looks
        for today's: it finds no weight, warns and goes on with those of the base (seen with 5.23).
        `from_pretrained` knows both.
        """
        trainer: Any = self
        policy = trainer.model if model is None else model
        if not isinstance(policy, PreTrainedModel):  # an adapter, or wrapped by FSDP
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        kept = type(policy).from_pretrained(
            resume_from_checkpoint, dtype=policy.dtype, use_safetensors=True
        )
        policy.load_state_dict(kept.state_dict(), strict=True)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        self._sampler = _AnyEpoch.of(sampler) if isinstance(sampler, RepeatSampler) else sampler
        return self._sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        folder = (
            Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
        )
        self.keep(folder)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            # DeepSpeed's parts, one a process, lie in a folder of their own
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            write_json(
                folder / WHOLE,
                {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
            )
        trainer.accelerator.wait_for_everyone()


class ResumableRollout(Resumable):
    """`Resumable` for GRPO, whose batches of completions may serve several steps."""

    def keep(self, checkpoint: Path) -> None:
        """Save the micro-step, unlogged metrics and buffered completions."""
        _write_rollout(checkpoint, self)

    def recall(self, checkpoint: Path) -> None:
        """Take these up again."""
        trainer: Any = self
        rollout = _read_rollout(checkpoint, trainer.accelerator.process_index)
        trainer._step, trainer._buffered_inputs, metrics = rollout
        trainer._metrics["train"].update(metrics)


class _AnyEpoch(RepeatSampler):  # type: ignore[misc]
    """TRL's order of prompts, which can begin at any epoch.

    The n-th permutation of its generator.
    """

    epoch = 0

    @classmethod
    def of(cls, sampler: RepeatSampler) -> _AnyEpoch:
        new = cls.__new__(cls)
        new.__dict__.update(sampler.__dict__)
        return new

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()


class _EpochOfSampler(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._sampler.epoch = math.floor(state.epoch or 0)


class _NoSaveAtTheEnd(TrainerCallback):  # type: ignore[misc]
    """Skip the save that transformers makes at the last step; the result is written next anyway."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False


def _write_rollout(folder: Path, trainer: Any) -> None:
    """Save one rank's micro-step, unlogged metrics and buffered completions."""
    pending = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) != 0
    tensors, others = _pack(trainer._buffered_inputs or [] if pending else [])
    stem = f"rollout-{trainer.accelerator.process_index}"
    save_file(tensors, folder / f"{stem}.safetensors")
    write_json(
        folder / f"{stem}.json",
        {"step": trainer._step, "others": others, "metrics": dict(trainer._metrics["train"])},
    )


def _read_rollout(
    folder: Path, process: int
) -> tuple[int, list[dict[str, Any]] | None, dict[str, list[float]]]:
    stem = folder / f"rollout-{process}"
    facts = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    return (
        facts["step"],
        _unpack(load_file(stem.with_suffix(".safetensors")), facts["others"]) or None,
        facts["metrics"],
    )


def _pack(batches: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Micro-batches as named tensors ("0.prompt_ids", "0.prompts.ids") and the rest as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    others: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        others.append({})
        for name, value in batch.items():
            fields = (
                {f"{name}.{field}": each for field, each in vars(value).items()}
                if isinstance(value, PromptBatch)
                else {name: value}
            )
            for field, each in fields.items():
                if isinstance(each, torch.Tensor):
                    tensors[f"{number}.{field}"] = each.detach().cpu().clone().contiguous()
                else:
                    others[-1][field] = each
    return tensors, others


def _unpack(tensors: dict[str, torch.Tensor], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = [dict(each) for each in others]
    for name, value in tensors.items():
        number, _, field = name.partition(".")
        batches[int(number)][field] = value
    for batch in batches:
        prompts = {
            name.partition(".")[2]: batch.pop(name)
            for name in [*batch]
            if name.startswith("prompts.")
        }
        if prompts:
            batch["prompts"] = PromptBatch(
                **prompts | {"image_counts": tuple(prompts["image_counts"])}
            )
    return batches
