"""Resuming of a killed training, to the weights it would have had without the interruption.

transformers restores optimiser, scheduler, random state and the position in an epoch. This adds
what it does not restore: for GRPO, TRL's count of micro-steps and the completions that are still to
be learnt from; the order of the second and later epochs; which checkpoint is complete; and the
weights of a Qwen2-VL, which it saves but does not find again. Checkpoints are safetensors and JSON,
except for optimiser and random state, which transformers reads back as tensors only
(`weights_only`).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback
from trl.trainer.utils import RepeatSampler

from stages.core.outputs import write_json
from stages.grpo.batch import Rollout
from stages.grpo.drafts import DraftTrie
from stages.grpo.reference import ReferenceTable
from stages.policy.prompt_batch import PromptBatch

MANIFEST: Final = "whole.json"
"""Written last into a checkpoint: its files and their sizes in bytes."""

_PROMPTS: Final = "rollout.prompts."
"""Prefix of the fields of a micro-batch's PromptBatch in a saved rollout."""

_TABLES: Final = "reference."
"""Prefix of the tensors of a reference's tables in a saved rollout."""


def prune_checkpoints(folder: Path) -> Path | None:
    """Remove checkpoints that a kill or a full disk left incomplete; the newest complete one."""
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if _is_complete(checkpoint):
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


class Resumable:
    """Mixin, before TRL's trainer in the bases: `train(resume_from_checkpoint=...)` is exact."""

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        """Train from the start, or from a checkpoint that `prune_checkpoints` returned."""
        trainer: Any = self
        trainer.add_callback(_SetSamplerEpoch(trainer))
        trainer.add_callback(_NoFinalSave())
        if resume_from_checkpoint is not None:
            self.load_extra_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)  # type: ignore[misc]

    def save_extra_state(self, checkpoint: Path) -> None:
        """Save what a subclass needs besides weights, optimiser and position: nothing here."""

    def load_extra_state(self, checkpoint: Path) -> None:
        """Restore what `save_extra_state` wrote."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: a checkpoint of the training is not published."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the policy's weights, or fail.

        transformers saves Qwen2-VL under the names of its first release and, on resuming, looks for
        the current names: it finds none, warns, and continues with the base's weights (seen with
        5.23). `from_pretrained` knows both.
        """
        trainer: Any = self
        policy = trainer.model if model is None else model
        if not isinstance(policy, PreTrainedModel):  # an adapter, or wrapped by FSDP
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        saved = type(policy).from_pretrained(
            resume_from_checkpoint, dtype=policy.dtype, use_safetensors=True
        )
        policy.load_state_dict(saved.state_dict(), strict=True)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        self._sampler = _EpochSampler.of(sampler) if isinstance(sampler, RepeatSampler) else sampler
        return self._sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        output = Path(trainer._get_output_dir(trial=trial))
        folder = output / f"checkpoint-{trainer.state.global_step}"
        self.save_extra_state(folder)
        # the manifest is written after the files of all processes
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            # recursive: DeepSpeed's parts, one per process, are in a subfolder
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            write_json(
                folder / MANIFEST,
                {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
            )
        trainer.accelerator.wait_for_everyone()


class ResumableRollout(Resumable):
    """`Resumable` for GRPO, where a batch of completions may serve several steps."""

    def save_extra_state(self, checkpoint: Path) -> None:
        """Save micro-step, unlogged metrics, and the completions still to be learnt from."""
        _write_rollout(checkpoint, self)

    def load_extra_state(self, checkpoint: Path) -> None:
        """Restore them."""
        trainer: Any = self
        accelerator = trainer.accelerator
        rollout = _read_rollout(checkpoint, accelerator.process_index, accelerator.device)
        trainer._step, trainer._buffered_inputs, metrics, drafts, tables = rollout
        if trainer._ahead is not None:
            trainer._ahead.tables.extend(tables)
        if trainer._drafts is not None:
            trainer._drafts.restore(drafts or [])
        trainer._metrics["train"].update(metrics)


class _EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler, able to start at any epoch: epoch n is its generator's n-th permutation."""

    epoch = 0

    @classmethod
    def of(cls, sampler: RepeatSampler) -> _EpochSampler:
        new = cls.__new__(cls)
        new.__dict__.update(sampler.__dict__)
        return new

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()


class _SetSamplerEpoch(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._sampler.epoch = math.floor(state.epoch or 0)


class SaveByTime(TrainerCallback):  # type: ignore[misc]
    """Save a state when enough minutes have passed since the last one; process 0 decides for all.

    Only after a logged step: what is not yet logged is no part of a state.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a state if it is time."""
        if state.global_step % args.logging_steps:
            return
        due = time.monotonic() - self._last >= self._seconds
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            decision = torch.tensor([int(due)], device=args.device)
            torch.distributed.broadcast(decision, src=0)
            due = bool(decision)
        control.should_save = control.should_save or due

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock again."""
        self._last = time.monotonic()


class _NoFinalSave(TrainerCallback):  # type: ignore[misc]
    """Do not save at the last step.

    Resumed there, transformers would take one step more; and the result is written next anyway.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False


def _write_rollout(folder: Path, trainer: Any) -> None:
    """Write the rollout state of one process: rollout-<process>.safetensors and .json."""
    # at a multiple the next step generates again: nothing is pending
    steps_per_rollout = trainer.args.steps_per_generation * trainer.num_iterations
    batches = trainer._buffered_inputs if trainer._step % steps_per_rollout else None
    tensors, others = _pack(batches or [])
    tables = list(trainer._ahead.tables) if trainer._ahead is not None else []
    for number, table in enumerate(tables):
        tensors[f"{_TABLES}{number}.tokens"] = table.tokens.cpu().clone()
        tensors[f"{_TABLES}{number}.logps"] = table.logps.cpu().clone()
    stem = f"rollout-{trainer.accelerator.process_index}"
    save_file(tensors, folder / f"{stem}.safetensors")
    write_json(
        folder / f"{stem}.json",
        {
            "step": trainer._step,
            "others": others,
            "metrics": dict(trainer._metrics["train"]),
            "drafts": list(trainer._drafts.recent) if trainer._drafts is not None else None,
            "tries": [[table.trie.tokens, table.trie.parents] for table in tables],
        },
    )


def _read_rollout(
    folder: Path, process: int, device: torch.device
) -> tuple[
    int,
    list[dict[str, Any]] | None,
    dict[str, list[float]],
    list[list[int]] | None,
    list[ReferenceTable],
]:
    """Micro-step, micro-batches on `device` (None if none are pending), metrics, drafts, tables.

    The metrics are those not yet logged; the drafts are None if there are none; the tables are the
    reference's, of the next batches.
    """
    stem = folder / f"rollout-{process}"
    state = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    tensors = load_file(stem.with_suffix(".safetensors"))
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    tables = []
    for number, trie in enumerate(state["tries"]):
        tokens, logps = (on_device.pop(f"{_TABLES}{number}.{name}") for name in ("tokens", "logps"))
        tables.append(ReferenceTable(DraftTrie(*map(tuple, trie)), tokens, logps))
    batches = _unpack(on_device, state["others"])
    return state["step"], batches or None, state["metrics"], state["drafts"], tables


def _pack(batches: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Micro-batches as named tensors, "0.prompt_ids" and so on, and the rest as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    others: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        rest: dict[str, Any] = {}
        for name, value in _flatten(batch).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value.detach().cpu().clone().contiguous()
            else:
                rest[name] = value
        others.append(rest)
    return tensors, others


def _flatten(batch: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch with the fields of its prompts, "rollout.prompts.ids" and so on, as its own.

    Its examples are not needed any more: their rewards are known.
    """
    flat: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Rollout):
            flat |= {f"{_PROMPTS}{field}": each for field, each in vars(value.prompts).items()}
        else:
            flat[name] = value
    return flat


def _unpack(tensors: dict[str, torch.Tensor], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inverse of `_pack`."""
    batches: list[dict[str, Any]] = [dict(each) for each in others]
    for name, value in tensors.items():
        number, _, field = name.partition(".")
        batches[int(number)][field] = value
    for batch in batches:
        names = [name for name in batch if name.startswith(_PROMPTS)]
        fields = {name.removeprefix(_PROMPTS): batch.pop(name) for name in names}
        if fields:
            for name in ("image_counts", "lengths", "image_paths"):
                fields[name] = tuple(fields[name])
            batch["rollout"] = Rollout([], PromptBatch(**fields))
    return batches
