"""FLOPs of a step by each implementation.

Counted are matrix products, with two FLOPs per multiply-add: projections, MLPs, attention scores
and values of unmasked pairs, the tower, and the head at positions with logits. A backward counts as
two forwards; nothing is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from stages.core.distributed.matrix_product import measure_rate
from stages.profiles.times import PEAKS

Way = Literal["g_copies", "trl", "shared", "drafted", "training"]
"""Single steps as Med-R1 computes them, by TRL, by ours without and with drafts; and a step of ours
among those of a training, with what is done ahead.
"""


@dataclass(frozen=True)
class Costs:
    """FLOPs of one model.

    `token`: linear maps of all layers, per token; `top`: the part of `token` that the last layer
    saves for a token that predicts nothing (all but its keys and values); `head`: logits of one
    position; `pair`: one query-key pair in all layers; `image`: tower and merger, per image.
    """

    token: float
    top: float
    head: float
    pair: float
    image: float

    def text(self, tokens: int, behind: int = 0, logits: int = 0) -> float:
        """A causal forward over `tokens` after `behind` cached ones, with `logits` positions."""
        pairs = tokens * behind + tokens * (tokens + 1) / 2
        return tokens * self.token + pairs * self.pair + logits * self.head


def costs(config: PretrainedConfig, side: int = 28) -> Costs:
    """Costs of a Qwen2-VL or Qwen2.5-VL, for images of side x side patches."""
    text = config.text_config
    width = text.hidden_size
    layers = text.num_hidden_layers
    kv_width = width // text.num_attention_heads * text.num_key_value_heads
    # weights per layer: query and output, key and value, gated MLP
    layer = 2 * width**2 + 2 * width * kv_width + 3 * width * text.intermediate_size
    return Costs(
        token=2 * layer * layers,
        top=2 * (layer - 2 * width * kv_width),
        head=2 * width * text.vocab_size,
        pair=4 * width * layers,
        image=_image(config.vision_config, width, side),
    )


def _image(vision: Any, width: int, side: int) -> float:
    patches = side**2
    merge = vision.spatial_merge_size**2
    windowed = vision.model_type.startswith("qwen2_5")
    inner = vision.hidden_size if windowed else vision.embed_dim
    mlp = 3 * inner * vision.intermediate_size if windowed else 2 * vision.mlp_ratio * inner**2
    embedding = 3 * vision.temporal_patch_size * vision.patch_size**2 * inner
    merger = (merge * inner) ** 2 + merge * inner * width
    pairs = vision.depth * patches**2
    if windowed:
        full = len(vision.fullatt_block_indexes)
        window = vision.window_size // vision.patch_size
        whole, rest = divmod(side, window)
        # windows are (window or rest) x (window or rest) patches: sum of squared areas
        in_windows = (whole * window**2 + rest**2) ** 2
        pairs = full * patches**2 + (vision.depth - full) * in_windows
    return (
        2 * patches * (vision.depth * (4 * inner**2 + mlp) + embedding)
        + 2 * patches / merge * merger
        + 4 * inner * pairs
    )


def per_prompt(
    way: Way,
    model: Costs,
    prompt: int,
    completion: int,
    group: int,
    nodes: int = 0,
    images: int = 1,
) -> float:
    """FLOPs of a step for one prompt: `prompt` tokens, `group` completions of `completion` tokens.

    The tokens of the prompt's `images` are among its own. `shared` counts our engine without
    drafts: the prompt pass of the rollout also serves the loss; the reference has its own prompt
    pass, tower included; the last layer runs only for tokens that predict one. `drafted` counts
    completions that end in a trie of `nodes`: one pass over prompt and trie is rollout and forward,
    and the reference is that of `shared`.
    """
    completions = group * model.text(completion, behind=prompt, logits=completion)
    tower = images * model.image
    prompt_pass = tower + model.text(prompt, logits=1) - (prompt - 1) * model.top
    if way == "drafted":
        drafted = prompt_pass + model.text(nodes, behind=prompt, logits=nodes)
        return 3 * drafted + prompt_pass + completions
    if way == "shared":
        forward = prompt_pass + completions
        # rollout with the prompt pass of the loss, scoring, backward, reference
        return prompt_pass + completions + completions + 2 * forward + prompt_pass + completions
    every_position = way == "g_copies"
    length = prompt + completion
    prefill = tower + model.text(prompt, logits=prompt if every_position else 1)
    row = tower + model.text(length, logits=length if every_position else completion)
    # rollout; then policy forward, backward (twice) and reference over whole rows
    return group * prefill + completions + group * 4 * row


def peak_rate(device: torch.device) -> tuple[float, str]:
    """Peak FLOP/s of this device and its source: a data sheet, or a timed matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAKS.items():
            if part in name:
                return peak.bfloat16, f"data sheet of the {part}, bfloat16, dense"
    timed = measure_rate(device.type, torch.get_num_threads())
    return (
        timed.flops_per_second,
        f"product of {timed.size} x {timed.size} matrices in {timed.dtype}, timed",
    )
