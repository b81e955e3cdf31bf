"""What a profile needs: memory, disk, hours.

Estimates, from counts of FLOPs and bytes; only the sizes of downloads are known.

Hours are those of matrix products at a share of the GPU's peak, and of sampling a token at a time,
which waits for launches rather than for products. Both are assumptions (`TRAINING`, `SAMPLING`),
right to a factor of about two; benchmarks/gpu.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stages.core import layout
from stages.core.params import Params
from stages.profiles.schema import Model, Profile, Scale
from stages.taxonomy import AXES

PEAKS: Final = {
    "A100": (312e12, 19.5e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "L40S": (362e12, 91.6e12),
    "B200": (2250e12, 80e12),
}
"""By a part of a GPU's name: FLOP/s in the data sheets, dense, in bfloat16 and in float32."""
REFERENCE: Final = "H200"
"""The GPU that hours are told for where none is known."""
TRAINING: Final = 0.35
"""Assumed: share of the peak that passes over many tokens reach."""
SAMPLING: Final = 0.03
"""Assumed: seconds a pass that samples one token for each row of a batch."""
TESTED_AT_ONCE: Final = 64
"""Answers in a batch that is as large as memory allows, at least: on a GPU of 40 GB or more."""
TOKENS: Final = {"no-think": 10, "think": 150, "think-after": 150}
"""Tokens of a usual completion: those of an answer, or of Med-R1's thoughts and an answer."""
RUNTIME: Final = 2 * 10**9
"""Bytes of GPU memory that CUDA and the libraries take."""
IMAGE: Final = 170_000
"""Bytes of a resized image, about: OmniMedVQA's take 14 GB."""
REPORT: Final = 10**9
"""Bytes of predictions, logs, splits and the report, at most."""
WHERE: Final = {
    "report": layout.REPORT,
    "resized images": layout.DATA / "images",
    "models": layout.MODELS,
    "states to resume from": layout.SCRATCH / "train",
}
"""What takes room on the disk -> where."""


@dataclass(frozen=True)
class Needs:
    """Bytes of GPU memory by what takes it; hours of one GPU; the name that hours are told for."""

    memory: dict[str, int]
    training: float
    evaluation: float
    gpu: str

    @property
    def bytes(self) -> int:
        """GPU memory at the peak of a training."""
        return sum(self.memory.values())


def needs(params: Params, model: Model, scale: Scale, gpu: str = REFERENCE) -> Needs:
    """GPU time and memory to train and test all checkpoints on GPUs of this name.

    A GPU missing from `PEAKS` is treated as `REFERENCE`.
    """
    known = next((part for part in PEAKS if part in gpu), REFERENCE)
    low, high = PEAKS[known]
    in_bfloat16 = params.base.dtype == "bfloat16"
    training = _training_seconds(
        params, model, scale, (low if params.grpo.bf16 or in_bfloat16 else high) * TRAINING
    )
    tested_in = params.evaluate.dtype or params.base.dtype
    evaluation = _evaluation_seconds(
        params, model, scale, (low if tested_in == "bfloat16" else high) * TRAINING
    )
    return Needs(memory(params, model), training / 3600, evaluation / 3600, known)


def memory(params: Params, model: Model) -> dict[str, int]:
    """Bytes of GPU memory that training takes at most, by what takes it.

    Spreading over several GPUs is not counted.
    """
    grpo = params.grpo
    size = 4 if params.base.dtype == "float32" else 2
    all_weights = model.parameters - (model.vision_parameters if grpo.freeze_vision_tower else 0)
    trained = model.parameters // 50 if grpo.lora else all_weights
    copies = grpo.num_generations if grpo.engine == "trl" else 1
    completion = grpo.num_generations * grpo.max_completion_length
    if grpo.gradient_checkpointing:  # a layer at a time
        cached = (copies * model.prompt_mb + completion * model.token_mb) * 2 / model.layers
    else:
        cached = (
            0.4 if grpo.freeze_vision_tower else 1.0
        ) * copies * model.prompt_mb + completion * model.token_mb
    # logits, their logarithms and the gradient of them, in float32
    logits = 0 if grpo.fused_head else 3 * 4 * completion * model.vocabulary
    return {
        "weights": model.parameters * size,
        "weights in bfloat16": model.parameters * 2 if grpo.bf16 and size == 4 else 0,
        "gradients and Adam": trained * size * 3,
        "reference": model.parameters * size if grpo.beta and not grpo.lora else 0,
        "activations": round(grpo.prompts_per_device * cached * 1e6),
        "logits": grpo.prompts_per_device * logits,
        "CUDA": RUNTIME,
    }


def disk(params: Params, profile: Profile, gpus: int) -> dict[str, int]:
    """Bytes that a run writes besides downloads, by purpose, unknown ones left out.

    `gpus`: trainings at a time.
    """
    sizes = {"report": REPORT}
    if profile.scale:
        sizes["resized images"] = profile.scale.images * IMAGE
    if profile.model:
        size = 4 if params.base.dtype == "float32" else 2
        sizes["models"] = (
            profile.model.size + len(params.checkpoints) * profile.model.parameters * size
        )
        # weights and Adam's two moments, in the last state and the one before it, and in a new one
        # before the oldest goes
        sizes["states to resume from"] = (
            max(gpus, 1) * 3 * 3 * profile.model.parameters * size if params.grpo.save_steps else 0
        )
    return sizes


def _training_seconds(params: Params, model: Model, scale: Scale, rate: float) -> float:
    grpo, axes = params.grpo, _axes(params)
    batch = grpo.prompts_per_device * grpo.gradient_accumulation_steps
    prompts = scale.questions * params.splits.train_share * len(axes) * grpo.num_train_epochs
    if grpo.max_steps > 0:
        prompts = min(prompts, len(params.checkpoints) * grpo.max_steps * batch)
    prefill = model.prompt_tflop * 1e12 * (grpo.num_generations if grpo.engine == "trl" else 1)
    tokens = TOKENS[params.prompt.style] * grpo.num_generations * model.token_gflop * 1e9
    # sampling, policy, its backward of twice that, reference; the shared prefix's policy pass over
    # the prompt is the sampling's
    passes = 5 if grpo.engine == "trl" or not grpo.reuse_prompt_pass else 4
    flops = prompts * (passes * prefill + 5 * tokens)
    return flops / rate + prompts / grpo.prompts_per_device * TOKENS[params.prompt.style] * SAMPLING


def _evaluation_seconds(params: Params, model: Model, scale: Scale, rate: float) -> float:
    axes = _axes(params)
    tested = sum(
        1 + sum(entry.axis == axis for entry in params.checkpoints.values()) for axis in axes
    )
    questions = (
        scale.questions
        * (1 - params.splits.train_share)
        * tested
        * (3 if params.evaluate.ablations else 1)
    )
    tokens = TOKENS[params.prompt.style]
    flops = questions * (model.prompt_tflop * 1e12 + tokens * model.token_gflop * 1e9)
    batch = params.evaluate.batch_size
    return (
        flops / rate
        + questions / (TESTED_AT_ONCE if batch == "auto" else batch) * tokens * SAMPLING
    )


def _axes(params: Params) -> Sequence[str]:
    trained = {entry.axis for entry in params.checkpoints.values()}
    return [axis for axis in AXES if axis in trained]
