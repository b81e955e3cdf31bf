"""Rules between checkpoints, evaluations and the groups of settings that they belong to."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from stages.core.settings.learning import Checkpoint
from stages.taxonomy import fold_slug, fold_slugs

if TYPE_CHECKING:
    from stages.core.params import Params

BUDGET: Final = (
    "seed",
    "prompts_per_device",
    "gradient_accumulation_steps",
    "engine",
    "reuse_prompt_pass",
    "num_iterations",
    "num_train_epochs",
    "max_steps",
)
"""Keys of `grpo` that decide which prompts are seen, in which order and how often."""


def check_checkpoints(params: Params) -> None:
    """ValueError for a checkpoint whose name or settings do not fit the others."""
    _check_folds(params)
    for name, checkpoint in params.checkpoints.items():
        _check_name(params, name, checkpoint)
        params.grpo_for(name)
        if checkpoint.method == "sft":
            _check_sft(params, name, checkpoint)
        elif checkpoint.sft:
            raise ValueError(
                f"checkpoints.{name}.sft: this checkpoint learns by GRPO; remove it, or set"
                " method to sft"
            )
    language = getattr(params.base.attention, "language", params.base.attention)
    if language == "flash_attention_2" and any(
        params.grpo_for(name).engine == "shared-prefix" for name in params.checkpoints
    ):
        raise ValueError(
            "base.attention flash_attention_2 cannot take the mask of grpo.engine"
            " shared-prefix: use auto, which takes it for the vision tower, or sdpa, or the"
            " engine trl"
        )


def check_evaluations(params: Params) -> None:
    """ValueError for evaluations that are not the checkpoints', or for a cell that is none."""
    axes = params.taxonomy.axes
    for cell in params.retrain.never_worse:
        name, _, tested = cell.partition("/")
        if name not in params.checkpoints or tested not in axes[params.checkpoints[name].axis]:
            raise ValueError(
                f"retrain.never_worse: {cell!r} is not a cell; name a checkpoint and one that"
                " it is tested on, as ct/mri"
            )
    if extra := set(params.evaluations) ^ {"base", *params.checkpoints}:
        raise ValueError(
            "evaluations must be base and the checkpoints; not on both sides:"
            f" {', '.join(sorted(extra))}"
        )
    wanted = {"base": "all"} | {name: each.axis for name, each in params.checkpoints.items()}
    for name, axis in wanted.items():
        if params.evaluations[name].axis != axis:
            raise ValueError(f"evaluations.{name}.axis must be {axis}, as in checkpoints")


def _check_folds(params: Params) -> None:
    """ValueError if a checkpoint lacks a fold: a row of the report needs them all."""
    for row, members in params.rows.items():
        if params.splits.folds and len(members) < params.splits.folds:
            raise ValueError(
                f"checkpoints: {row} has {len(members)} of the {params.splits.folds} folds of"
                f" splits.folds ({', '.join(members)}): name them all, as"
                f" {fold_slug(row, 1)}, or none"
            )


def _check_name(params: Params, name: str, checkpoint: Checkpoint) -> None:
    axis, split = checkpoint.axis, checkpoint.split
    allowed = [
        *params.taxonomy.axes[axis],
        *(joint for joint, each in params.splits.joint.items() if each.axis == axis),
    ]
    if params.splits.folds:
        folds = params.splits.folds
        allowed = list(chain.from_iterable(fold_slugs(each, folds) for each in allowed))
    if split not in allowed:
        where = f"checkpoints.{name}" if split == name else f"checkpoints.{name}.split = {split!r}"
        hint = (
            " (say which it learns from: split)"
            if split == name and checkpoint.method == "sft"
            else ""
        )
        raise ValueError(f"{where}: no such {axis}{hint}; allowed: {', '.join(allowed)}")
    wanted = f"sft-{split}" if checkpoint.method == "sft" else split
    if name != wanted:
        raise ValueError(
            f"checkpoints.{name}: with the split {split!r} and the method {checkpoint.method}"
            f" it must be called {wanted}"
        )


def _check_sft(params: Params, name: str, checkpoint: Checkpoint) -> None:
    """Check an SFT checkpoint's settings.

    Its budget must equal the GRPO checkpoint's of its split.
    """
    params.sft_for(name)
    if checkpoint.split not in params.checkpoints:
        return
    own, twin = params.grpo_for(name), params.grpo_for(checkpoint.split)
    if differing := [key for key in BUDGET if getattr(own, key) != getattr(twin, key)]:
        key = differing[0]
        raise ValueError(
            f"checkpoints.{name}: grpo.{key} is {getattr(own, key)!r}, but"
            f" {getattr(twin, key)!r} for checkpoints.{checkpoint.split}: both must see the"
            " same prompts, so give both the same `grpo`"
        )
