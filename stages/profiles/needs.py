"""Estimates of what a profile needs: GPU memory, disk, GPU-hours.

Computed from counts of FLOPs and bytes; only the sizes of downloads are exact. Hours assume that
matrix products run at a share of the GPU's peak (`EFFICIENCY`), and that sampling a token takes a
constant time (`TOKEN_SECONDS`), since it waits for launches rather than for products. So they are
right to a factor of about two; benchmarks/gpu.md has measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from stages.core import layout
from stages.core.params import Params
from stages.profiles.schema import Model, Profile, Scale
from stages.taxonomy import AXIS_NAMES


class Peak(NamedTuple):
    """Dense FLOP/s of a GPU by its data sheet."""

    bfloat16: float
    float32: float


PEAKS: Final = {
    "A100": Peak(312e12, 19.5e12),
    "H100": Peak(989e12, 67e12),
    "H200": Peak(989e12, 67e12),
    "L40S": Peak(362e12, 91.6e12),
    "B200": Peak(2250e12, 80e12),
}
"""Part of a GPU's name -> its peak."""
REFERENCE: Final = "H200"
"""The GPU to estimate hours for if there is none, or an unknown one."""
EFFICIENCY: Final = 0.35
"""Assumed share of the peak that passes over many tokens reach."""
TOKEN_SECONDS: Final = 0.03
"""Assumed duration of a pass that samples one token per row of a batch."""
AUTO_BATCH_SIZE: Final = 64
"""Least batch size of an evaluation with batch_size: auto, on a GPU of 40 GB or more."""
COMPLETION_TOKENS: Final = {"no-think": 10, "think": 150, "think-after": 150}
"""Prompt style -> typical tokens per completion: an answer, or Med-R1's thoughts and an answer."""
LORA_SHARE: Final = 0.02
"""Assumed share of a model's parameters that adapters have, at rank 16 on all projections."""
FROZEN_TOWER_SHARE: Final = 0.4
"""Share of a prompt's activations that is stored if the vision tower is frozen."""
CUDA_BYTES: Final = 2 * 10**9
"""GPU memory for CUDA and the libraries."""
IMAGE_BYTES: Final = 170_000
"""Typical size of a resized image: OmniMedVQA's take 14 GB."""
REPORT_BYTES: Final = 10**9
"""Most that predictions, logs, splits and the report take."""
OUTPUT_PATHS: Final = {
    "report": layout.REPORT,
    "resized images": layout.DATA / "images",
    "models": layout.MODELS,
    "states to resume from": layout.SCRATCH / "train",
}
"""Purpose of disk space -> where it is used."""


@dataclass(frozen=True)
class Needs:
    """What trainings and evaluations need.

    `memory`: bytes of GPU memory by purpose; `training`, `evaluation`: hours of one GPU; `gpu`: the
    key of PEAKS that they are for.
    """

    memory: dict[str, int]
    training: float
    evaluation: float
    gpu: str

    @property
    def bytes(self) -> int:
        """Peak GPU memory of a training."""
        return sum(self.memory.values())


def needs(params: Params, model: Model, scale: Scale, gpu: str = REFERENCE) -> Needs:
    """GPU time and memory to train and test all checkpoints on GPUs of this name.

    A GPU missing from `PEAKS` is treated as `REFERENCE`.
    """
    known = next((part for part in PEAKS if part in gpu), REFERENCE)
    peak = PEAKS[known]
    trains_in_bfloat16 = params.grpo.bf16 or params.base.dtype == "bfloat16"
    tests_in_bfloat16 = (params.evaluate.dtype or params.base.dtype) == "bfloat16"
    training_rate = EFFICIENCY * (peak.bfloat16 if trains_in_bfloat16 else peak.float32)
    evaluation_rate = EFFICIENCY * (peak.bfloat16 if tests_in_bfloat16 else peak.float32)
    return Needs(
        memory(params, model),
        _training_seconds(params, model, scale, training_rate) / 3600,
        _evaluation_seconds(params, model, scale, evaluation_rate) / 3600,
        known,
    )


def memory(params: Params, model: Model) -> dict[str, int]:
    """Peak bytes of GPU memory of a training on one GPU, by purpose."""
    grpo = params.grpo
    weight_bytes = _weight_size(params)
    trained = model.parameters
    if grpo.lora:
        trained = round(model.parameters * LORA_SHARE)
    elif grpo.freeze_vision_tower:
        trained -= model.vision_parameters
    prompt_copies = grpo.num_generations if grpo.engine == "trl" else 1
    completion_tokens = grpo.num_generations * grpo.max_completion_length
    # activations per prompt that are stored for the backward pass, in 10^6 bytes
    prompt_mb = prompt_copies * model.prompt_mb
    completion_mb = completion_tokens * model.token_mb
    if grpo.gradient_checkpointing:  # one layer is recomputed while the next is stored
        activations_mb = (prompt_mb + completion_mb) * 2 / model.layers
    else:
        stored = FROZEN_TOWER_SHARE if grpo.freeze_vision_tower else 1.0
        activations_mb = stored * prompt_mb + completion_mb
    # logits, their logarithms and the gradient of them, in float32
    logits = 0 if grpo.fused_head else 3 * 4 * completion_tokens * model.vocabulary
    return {
        "weights": model.parameters * weight_bytes,
        "weights in bfloat16": model.parameters * 2 if grpo.bf16 and weight_bytes == 4 else 0,
        # the gradient and Adam's two moments, each as large as the trained weights
        "gradients and Adam": trained * weight_bytes * 3,
        "reference": model.parameters * weight_bytes if grpo.beta and not grpo.lora else 0,
        "activations": round(grpo.prompts_per_device * activations_mb * 1e6),
        "logits": grpo.prompts_per_device * logits,
        "CUDA": CUDA_BYTES,
    }


def disk(params: Params, profile: Profile, gpus: int) -> dict[str, int]:
    """Bytes that a run writes besides downloads, by purpose, as far as known.

    `gpus`: number of trainings at a time.
    """
    written = {"report": REPORT_BYTES}
    if profile.scale:
        written["resized images"] = profile.scale.images * IMAGE_BYTES
    if profile.model:
        weights = profile.model.parameters * _weight_size(params)
        written["models"] = profile.model.size + len(params.checkpoints) * weights
        # A state has weights and Adam's two moments. There are three per training: the last, the
        # one before it, and a new one before the oldest is deleted.
        states = max(gpus, 1) * 3 * 3 * weights
        written["states to resume from"] = (
            states if params.grpo.save_steps or params.grpo.save_minutes else 0
        )
    return written


def _weight_size(params: Params) -> int:
    """Bytes per parameter."""
    return 4 if params.base.dtype == "float32" else 2


def _training_seconds(params: Params, model: Model, scale: Scale, rate: float) -> float:
    grpo = params.grpo
    batch = grpo.prompts_per_device * grpo.gradient_accumulation_steps
    axes = len(_axes(params))
    prompts = scale.questions * params.splits.train_share * axes * grpo.num_train_epochs
    if grpo.max_steps > 0:
        prompts = min(prompts, len(params.checkpoints) * grpo.max_steps * batch)
    tokens = COMPLETION_TOKENS[params.prompt.style]
    prompt_copies = grpo.num_generations if grpo.engine == "trl" else 1
    prompt_flops = model.prompt_tflop * 1e12 * prompt_copies
    completion_flops = tokens * grpo.num_generations * model.token_gflop * 1e9
    # sampling, policy, its backward pass (counts twice) and, if there is a KL term, the reference
    passes = 5 if grpo.beta else 4
    # the policy's pass over a shared prompt can be that of sampling
    prompt_passes = passes - (grpo.engine == "shared-prefix" and grpo.reuse_prompt_pass)
    flops = prompts * (prompt_passes * prompt_flops + passes * completion_flops)
    return flops / rate + prompts / grpo.prompts_per_device * tokens * TOKEN_SECONDS


def _evaluation_seconds(params: Params, model: Model, scale: Scale, rate: float) -> float:
    # on each axis, every checkpoint of it and the base are tested
    policies = 0
    for axis in _axes(params):
        policies += 1 + sum(entry.axis == axis for entry in params.checkpoints.values())
    questions = scale.questions * (1 - params.splits.train_share) * policies
    if params.evaluate.ablations:
        questions *= 3
    tokens = COMPLETION_TOKENS[params.prompt.style]
    flops = questions * (model.prompt_tflop * 1e12 + tokens * model.token_gflop * 1e9)
    batch = params.evaluate.batch_size
    batches = questions / (AUTO_BATCH_SIZE if batch == "auto" else batch)
    return flops / rate + batches * tokens * TOKEN_SECONDS


def _axes(params: Params) -> Sequence[str]:
    """The axes that have a checkpoint."""
    trained = {entry.axis for entry in params.checkpoints.values()}
    return [axis for axis in AXIS_NAMES if axis in trained]
