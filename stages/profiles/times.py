"""Estimates of time on a GPU, by part: optimiser steps, states, starts of processes.

Those of evaluations, which rest on some of the same constants, are in
`stages.profiles.evaluation_times`.

Counted are FLOPs and bytes; how long they take rests on the constants below. Those called measured
were measured on 2 CPU cores without a GPU (launches: with the layers of Qwen2-VL-2B at tiny
widths), and are right for a host as slow as that one. Those called assumed were not measured.
`python -m benchmarks.gpu` measures all of it on a GPU at once, and its rates replace these
(`stages.profiles.measured`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from stages.core.params import Params
from stages.profiles.measured import Measured
from stages.profiles.schema import Model, Scale
from stages.profiles.shown import ONE, Images, frames_of, images_per_question, prompt_flops
from stages.taxonomy import AXIS_NAMES


class Peak(NamedTuple):
    """Dense FLOP/s and bytes/s of memory of a GPU by its data sheet."""

    bfloat16: float
    float32: float
    bandwidth: float


PEAKS: Final = {
    "A100": Peak(312e12, 19.5e12, 2.0e12),
    "H100": Peak(989e12, 67e12, 3.35e12),
    "H200": Peak(989e12, 67e12, 4.8e12),
    "L40S": Peak(362e12, 91.6e12, 0.864e12),
    "B200": Peak(2250e12, 80e12, 8.0e12),
}
"""Part of a GPU's name -> its peak, of the largest variant of that name."""
REFERENCE: Final = "H200"
"""The GPU to estimate hours for if there is none, or an unknown one."""
EFFICIENCY: Final = 0.35
"""Assumed: share of the peak FLOP rate that passes over many tokens reach."""
BANDWIDTH_SHARE: Final = 0.8
"""Assumed: share of the peak bandwidth that element-wise kernels reach."""
LAYERS: Final = 28
"""Layers of the language model for which launches were measured; its vision tower has 32."""
FORWARD_SECONDS: Final = 0.102
"""Launches of a forward pass over prompts with images: 2,972 kernels under autocast, counted by
`benchmarks.step_kernels`, of 34 us each: measured without autocast, 54 to 80 ms for 1,961.
"""
REFERENCE_SECONDS: Final = 0.080
"""The same of the reference, whose weights need no cast: 2,329 kernels."""
COMPLETION_SECONDS: Final = 0.073
"""The same of a forward pass over completions alone: 1,883 kernels of 39 us each, measured as 36 to
59 ms for 1,230.
"""
BACKWARD_SECONDS: Final = 0.112
"""The same of a backward pass through prompts and drafts: 4,599 kernels of 24 us each, measured as
100 to 190 ms for 5,957.
"""
COMPLETION_BACKWARD_SECONDS: Final = 0.080
"""What a backward pass through completions of a pass of their own adds: 3,292 kernels."""
TRAINER_SECONDS: Final = 0.07
"""Measured: TRL, transformers and the optimiser's launches per step, 60 to 80 ms."""
TOKEN_SECONDS: Final = 0.024
"""Measured: launches of a pass that samples a token of each completion: 9 in 160 to 265 ms, without
autocast.
"""
IMAGE_SECONDS: Final = 0.011
"""Measured: open an image (3.4 to 4.9 ms) and process it (6.8 ms), the GPU waiting."""
COMPLETION_TOKENS: Final = {"no-think": 10, "think": 150, "think-after": 150}
"""Prompt style -> typical tokens per completion: an answer, or Med-R1's thoughts and an answer."""
LONGEST: Final = {"no-think": 1.0, "think": 1.6, "think-after": 1.6}
"""Prompt style -> the longest completion of a step over the typical one: a step waits for it.
Answers alone are all alike; for thoughts it is assumed.
"""
LONG_SHARE: Final = 0.0006
"""Share of completions that run to `grpo.max_completion_length`. Measured is that 7 of the 11,520
completions of a training of the embedded sample left the trie; that they run so long is assumed.
"""
DRAFTED_NODES: Final = 19
"""Tokens of the answer format with each of four letters, in the pass over the prompts."""
DISK_RATE: Final = 1e9
"""Assumed: bytes per second that are written to a disk, read from it, or hashed."""
TRAIN_START_SECONDS: Final = 12.3
"""Measured: imports of a training."""
LORA_SHARE: Final = 0.02
"""Assumed share of a model's parameters that adapters have, at rank 16 on all projections."""

Parts = dict[str, float]
"""What takes time -> its seconds; in the sum over all parts nothing is counted twice."""


def known_gpu(name: str) -> str:
    """The key of `PEAKS` for a GPU's name; REFERENCE if it has none."""
    return next((part for part in PEAKS if part in name), REFERENCE)


def shown_images(params: Params, scale: Scale) -> Images:
    """Images that a question shows with these settings."""
    return images_per_question(scale, frames_of(params.volume), params.volume.max_images)


def training_parts(
    params: Params, model: Model, scale: Scale, peak: Peak, measured: Measured
) -> Parts:
    """Seconds of one GPU to train all checkpoints."""
    grpo = params.grpo
    prompts = scale.questions * params.splits.train_share * len(trained_axes(params))
    steps = prompts * grpo.num_train_epochs / prompts_per_step(params)
    if grpo.max_steps > 0:
        steps = min(steps, len(params.checkpoints) * grpo.max_steps)
    if measured.step_seconds is None:
        parts = step_parts(params, model, peak, shown_images(params, scale).mean)
    else:
        parts = {"steps": measured.step_seconds}
    seconds = measured.pass_seconds or token_seconds(model)
    parts["long completions"] = _waiting_passes(params) * seconds
    parts = {name: steps * seconds for name, seconds in parts.items()}
    state = state_bytes(params, model) / DISK_RATE
    if grpo.save_minutes:
        parts["states"] = sum(parts.values()) / (60 * grpo.save_minutes) * state
    elif grpo.save_steps:
        parts["states"] = steps / grpo.save_steps * state
    weights = model.parameters * weight_size(params)
    # policy and reference are read; the result is written, and hashed by DVC
    moved = weights * (2 if grpo.beta and not grpo.lora else 1) + 2 * weights
    parts["starts"] = len(params.checkpoints) * (TRAIN_START_SECONDS + moved / DISK_RATE)
    return parts


def step_parts(params: Params, model: Model, peak: Peak, images: float = ONE.mean) -> Parts:
    """Seconds of an optimiser step on one GPU with completions of typical length.

    `images`: of a question, on average. The prompts of a pass are padded to the longest, which is
    not counted: it is least where all questions have as many.

    Kernels and their launches overlap: `launches` is the time by which these take longer.
    """
    grpo = params.grpo
    passes = grpo.gradient_accumulation_steps
    prompts = prompts_per_step(params)
    rate = EFFICIENCY * (peak.bfloat16 if _in_bfloat16(params) else peak.float32)
    products = prompts * _prompt_flops(params, model, images) / rate
    weights = weight_traffic(params, model) / (BANDWIDTH_SHARE * peak.bandwidth)
    launches = passes * _launch_seconds(params, model)
    parts = {
        "products": products,
        "weights": weights,
        "launches": max(launches - products - weights, 0.0),
        "sampling": passes * _decoded(params) * token_seconds(model),
        "trainer": TRAINER_SECONDS,
    }
    # workers process the images of a step while the one before computes
    opening = prompts * images * IMAGE_SECONDS
    if grpo.loader_workers:
        opening = max(opening / grpo.loader_workers - sum(parts.values()), 0.0)
    return {"images": opening} | parts


def reference_passes(params: Params) -> float:
    """Forward passes of the reference for a pass of the policy, on average.

    Several steps may share one. Where completions leave the drafts, each has one of its own, too.
    """
    grpo = params.grpo
    if not grpo.beta:
        return 0.0
    own = 0.0 if foresees(params) or grpo.batches_ahead == 1 else 1.0
    return own + 1 / grpo.batches_ahead


def weight_traffic(params: Params, model: Model) -> float:
    """Bytes of weights, gradients and Adam's moments that an optimiser step reads and writes.

    Sampling aside, whose passes take longer to launch than to read the weights.
    """
    grpo = params.grpo
    passes = grpo.gradient_accumulation_steps
    size = weight_size(params)
    computed = 2 if _in_bfloat16(params) else size
    cast = size + computed if computed < size else 0  # read and write
    forwards = 1 if foresees(params) else 2  # with the completions in a pass of their own
    backwards = 1 if foresees(params) else 2
    read = forwards * (cast + computed) + backwards * computed
    rounded = _rounded_in_reference(params, model)
    reference = model.parameters * (cast + computed) - rounded * cast
    # a gradient is written, read, and written or added to in the weights' type
    gradients = backwards * (computed + cast) + (passes * backwards - 1) * size / passes
    # clipping: norm, then read and write; Adam: reads 4 tensors and writes 3
    update = 3 * size + 7 * size
    trained = trained_parameters(params, model)
    passed = model.parameters * read + reference_passes(params) * reference + trained * gradients
    return passes * passed + trained * update


def reference_bytes(params: Params, model: Model) -> int:
    """Bytes of the reference's weights; none without one, and adapters have none of their own."""
    if not params.grpo.beta or params.grpo.lora:
        return 0
    size = weight_size(params)
    return model.parameters * size - _rounded_in_reference(params, model) * (size - 2)


def _rounded_in_reference(params: Params, model: Model) -> int:
    """Parameters that the reference has in bfloat16, as autocast would convert them.

    With adapters none: it is the policy without them.
    """
    grpo = params.grpo
    is_rounded = grpo.bf16 and grpo.engine == "shared-prefix" and weight_size(params) == 4
    if grpo.lora or not is_rounded or model.embedding_parameters is None:
        return 0
    return model.parameters - model.embedding_parameters


def foresees(params: Params) -> bool:
    """Whether completions end in the pass over the prompts: drafted, and without thoughts."""
    grpo = params.grpo
    is_drafted = grpo.engine == "shared-prefix" and grpo.draft_nodes > 0
    return is_drafted and grpo.rollout == "policy" and params.prompt.style == "no-think"


def prompts_per_step(params: Params) -> int:
    """Prompts of an optimiser step on one GPU."""
    return params.grpo.prompts_per_device * params.grpo.gradient_accumulation_steps


def trained_parameters(params: Params, model: Model) -> int:
    """Parameters that have gradients."""
    if params.grpo.lora:
        return round(model.parameters * LORA_SHARE)
    if params.grpo.freeze_vision_tower:
        return model.parameters - model.vision_parameters
    return model.parameters


def weight_size(params: Params) -> int:
    """Bytes per parameter."""
    return 4 if params.base.dtype == "float32" else 2


def state_bytes(params: Params, model: Model) -> int:
    """Bytes of a saved state: weights and Adam's two moments."""
    trained = trained_parameters(params, model)
    weights = trained if params.grpo.lora else model.parameters
    return (weights + 2 * trained) * weight_size(params)


def _in_bfloat16(params: Params) -> bool:
    return params.grpo.bf16 or params.base.dtype == "bfloat16"


def _prompt_flops(params: Params, model: Model, images: float) -> float:
    """FLOPs of a step for one prompt, with so many images, and its completions."""
    grpo = params.grpo
    tokens = COMPLETION_TOKENS[params.prompt.style]
    copies = grpo.num_generations if grpo.engine == "trl" else 1
    prompt = prompt_flops(model, images) * copies
    completions = tokens * grpo.num_generations * model.token_gflop * 1e9
    reference = 1 if grpo.beta else 0
    if foresees(params):
        # one pass is rollout and policy's forward; its backward counts twice
        drafted = prompt + DRAFTED_NODES * model.token_gflop * 1e9
        policy_pass = drafted if grpo.reuse_prompt_pass else 2 * drafted
        return policy_pass + 2 * drafted + reference * (prompt + completions)
    # sampling, policy, its backward pass and the reference
    passes = 4 + reference
    # the policy's pass over a shared prompt can be that of sampling
    prompt_passes = passes - (grpo.engine == "shared-prefix" and grpo.reuse_prompt_pass)
    if grpo.beta and grpo.batches_ahead > 1:  # for drafts that no completion follows to its end
        prompt_passes += 1
    return prompt_passes * prompt + passes * completions


def _launch_seconds(params: Params, model: Model) -> float:
    """Host time of the launches of a pass over `prompts_per_device` prompts, sampling aside."""
    seconds = FORWARD_SECONDS + BACKWARD_SECONDS
    seconds += REFERENCE_SECONDS * reference_passes(params)
    if not foresees(params):
        seconds += COMPLETION_SECONDS + COMPLETION_BACKWARD_SECONDS
    return seconds * model.layers / LAYERS


def token_seconds(model: Model) -> float:
    """Seconds of a pass that samples one token of each completion."""
    return TOKEN_SECONDS * model.layers / LAYERS


def _decoded(params: Params) -> float:
    """Passes that sample completions of typical length: none if they end in the prompts' pass."""
    typical = min(COMPLETION_TOKENS[params.prompt.style], params.grpo.max_completion_length)
    return 0.0 if foresees(params) else typical


def _waiting_passes(params: Params) -> float:
    """Passes of a step in which it waits for its longest completion, on average."""
    grpo = params.grpo
    completions = grpo.prompts_per_device * grpo.num_generations
    longest = expected_longest(params, completions, grpo.max_completion_length)
    waiting = longest - _decoded(params)
    if foresees(params):  # one that runs to the limit takes all of its passes, the others none
        waiting = _share_of_long(completions) * grpo.max_completion_length
    return grpo.gradient_accumulation_steps * waiting


def expected_longest(params: Params, count: float, limit: int) -> float:
    """Tokens of the longest of `count` completions, on average."""
    style = params.prompt.style
    longest = min(COMPLETION_TOKENS[style] * LONGEST[style], limit)
    return longest + _share_of_long(count) * (limit - longest)


def _share_of_long(count: float) -> float:
    """Probability that one of `count` completions runs to the limit."""
    return 1 - (1 - LONG_SHARE) ** count


def trained_axes(params: Params) -> list[str]:
    """The axes that have a checkpoint."""
    trained = {entry.axis for entry in params.checkpoints.values()}
    return [axis for axis in AXIS_NAMES if axis in trained]


def to_hours(parts: Mapping[str, float]) -> Parts:
    """The same in hours."""
    return {name: seconds / 3600 for name, seconds in parts.items()}
