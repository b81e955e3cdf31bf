"""Estimates of what a profile needs: GPU memory, disk, GPU-hours.

Computed from counts of FLOPs and bytes; only the sizes of downloads are exact. Memory and disk are
here, time is in `stages.profiles.times`, which says of each constant whether it is measured or
assumed. Rates of this GPU in benchmarks/gpu.json, with these settings, replace the estimates of
time; without them, hours are right to a factor of about two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stages.core import layout
from stages.core.params import Params
from stages.profiles.evaluation_times import evaluation_parts
from stages.profiles.measured import Measured
from stages.profiles.schema import Model, Profile, Scale
from stages.profiles.shown import ONE, Images, prompt_activations
from stages.profiles.times import (
    PEAKS,
    REFERENCE,
    Parts,
    known_gpu,
    reference_bytes,
    shown_images,
    state_bytes,
    to_hours,
    trained_parameters,
    training_parts,
    weight_size,
)

FROZEN_TOWER_SHARE: Final = 0.4
"""Share of a prompt's activations that is stored if the vision tower is frozen."""
CUDA_BYTES: Final = 2 * 10**9
"""GPU memory for CUDA and the libraries."""
IMAGE_BYTES: Final = 170_000
"""Typical size of a resized image: OmniMedVQA's take 14 GB."""
REPORT_BYTES: Final = 10**9
"""Most that predictions, logs, splits and the report take."""
STATES: Final = "states to resume from"
OUTPUT_PATHS: Final = {
    "report": layout.REPORT,
    "resized images": layout.DATA / "images",
    "models": layout.MODELS,
    STATES: layout.SCRATCH / "train",
}
"""Purpose of disk space -> where it is used."""


@dataclass(frozen=True)
class Needs:
    """What trainings and evaluations need.

    `memory`: bytes of GPU memory by purpose; `training_parts`, `evaluation_parts`: hours of one GPU
    by what takes them; `gpu`: the key of PEAKS that they are for; `measured`: the rates among them;
    `images`: of a question.
    """

    memory: dict[str, int]
    training_parts: Parts
    evaluation_parts: Parts
    gpu: str
    measured: Measured
    images: Images = ONE

    @property
    def bytes(self) -> int:
        """Peak GPU memory of a training."""
        return sum(self.memory.values())

    @property
    def training(self) -> float:
        """Hours of one GPU to train all checkpoints."""
        return sum(self.training_parts.values())

    @property
    def evaluation(self) -> float:
        """Hours of one GPU to test all checkpoints and the base."""
        return sum(self.evaluation_parts.values())


def needs(
    params: Params,
    model: Model,
    scale: Scale,
    gpu: str = REFERENCE,
    measured: Measured | None = None,
) -> Needs:
    """GPU time and memory to train and test all checkpoints on GPUs of this name.

    A GPU missing from `PEAKS` is treated as `REFERENCE`. `measured`: rates of this GPU, which are
    used as far as they hold for as many images a question.
    """
    known = known_gpu(gpu)
    images = shown_images(params, scale)
    rates = (measured or Measured()).of_images(images.mean)
    arguments = (params, model, scale, PEAKS[known], rates)
    return Needs(
        memory(params, model, images.most),
        to_hours(training_parts(*arguments)),
        to_hours(evaluation_parts(*arguments)),
        known,
        rates,
        images,
    )


def memory(params: Params, model: Model, images: int = ONE.most) -> dict[str, int]:
    """Peak bytes of GPU memory of a training on one GPU, by purpose.

    `images`: of a question at most. All questions of a step may have as many.
    """
    grpo = params.grpo
    weight_bytes = weight_size(params)
    trained = trained_parameters(params, model)
    prompt_copies = grpo.num_generations if grpo.engine == "trl" else 1
    completion_tokens = grpo.num_generations * grpo.max_completion_length
    # activations per prompt that are stored for the backward pass, in 10^6 bytes
    prompt_mb = prompt_copies * prompt_activations(model, images)
    completion_mb = completion_tokens * model.token_mb
    if grpo.gradient_checkpointing:  # one layer is recomputed while the next is stored
        activations_mb = (prompt_mb + completion_mb) * 2 / model.layers
    else:
        share = FROZEN_TOWER_SHARE if grpo.freeze_vision_tower else 1.0
        activations_mb = share * prompt_mb + completion_mb
    # logits, their logarithms and the gradient of them, in float32
    logits = 0 if grpo.fused_head else 3 * 4 * completion_tokens * model.vocabulary
    stored = {
        "activations": round(grpo.prompts_per_device * activations_mb * 1e6),
        "logits": grpo.prompts_per_device * logits,
    }
    return {
        "weights": model.parameters * weight_bytes,
        "weights in bfloat16": _cast_weights(params, model),
        "gradients": _gradients_beside(params, trained * weight_bytes, sum(stored.values())),
        "Adam": trained * weight_bytes * 2,
        "reference": reference_bytes(params, model),
        **stored,
        "CUDA": CUDA_BYTES,
    }


def _cast_weights(params: Params, model: Model) -> int:
    """Bytes of the bfloat16 copies of float32 weights that a backward pass needs.

    Autocast makes them anew in each pass. Where the prompts' pass serves the loss too, that over
    the completions has its own, of the language model.
    """
    grpo = params.grpo
    if not grpo.bf16 or weight_size(params) != 4:
        return 0
    copied = model.parameters
    if grpo.engine == "shared-prefix" and grpo.reuse_prompt_pass:
        copied += model.parameters - model.vision_parameters
    return 2 * copied


def _gradients_beside(params: Params, size: int, stored: int) -> int:
    """Bytes by which gradients of so many bytes add to the peak, beside `stored` activations.

    Without accumulation there are none when a backward pass begins, and they take the place of the
    activations that it frees.
    """
    if params.grpo.gradient_accumulation_steps > 1:
        return size
    return max(size - stored, 0)


def disk(params: Params, profile: Profile, trainings: int) -> dict[str, int]:
    """Bytes that a run writes besides downloads, by purpose, as far as known.

    `trainings`: at a time, one per GPU or more.
    """
    written = {"report": REPORT_BYTES}
    if profile.scale:
        written["resized images"] = profile.scale.images * IMAGE_BYTES
    if profile.model:
        weights = profile.model.parameters * weight_size(params)
        written["models"] = profile.model.size + len(params.checkpoints) * weights
        # three per training: the last, the one before it, and a new one before the oldest is
        # deleted
        states = max(trainings, 1) * 3 * state_bytes(params, profile.model)
        written[STATES] = states if params.grpo.save_steps or params.grpo.save_minutes else 0
    return written
