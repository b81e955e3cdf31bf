"""FLOPs (multiplications and additions) of a step: executed by each way, and the lower bound.

Counted are matrix products, two FLOPs a multiply-add: projections, MLPs, attention scores and
values over what is not masked, the tower, the head at the positions where logits are made. A
backward is two forwards; nothing is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from transformers import PretrainedConfig

Way = Literal["g_copies", "trl", "shared"]

PEAKS: Final = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s in the data sheets of GPUs, by a part of their name."""


@dataclass(frozen=True)
class Costs:
    """FLOPs of one model.

    `token`: the layers' linear maps, a token. `top`: of these, what the last layer needs no more
    for a token that predicts nothing, all but its keys and values. `head`: logits of one position.
    `pair`: one query and one key in all layers. `image`: the tower and the merger, an image.
    """

    token: float
    top: float
    head: float
    pair: float
    image: float

    def text(self, tokens: int, behind: int = 0, logits: int = 0) -> float:
        """A forward over `tokens` that follow `behind` others, each seeing what is before it."""
        pairs = tokens * behind + tokens * (tokens + 1) / 2
        return tokens * self.token + pairs * self.pair + logits * self.head


def costs(config: PretrainedConfig, side: int = 28) -> Costs:
    """Of a Qwen2-VL or Qwen2.5-VL, for images of side x side patches."""
    text, vision = config.text_config, config.vision_config
    width, layers = text.hidden_size, text.num_hidden_layers
    shared = width // text.num_attention_heads * text.num_key_value_heads
    layer = 2 * width**2 + 2 * width * shared + 3 * width * text.intermediate_size
    top = 2 * (layer - 2 * width * shared)
    return Costs(
        2 * layer * layers,
        top,
        2 * width * text.vocab_size,
        4 * width * layers,
        _image(vision, width, side),
    )


def _image(vision: Any, width: int, side: int) -> float:
    patches, merge = side**2, vision.spatial_merge_size**2
    windowed = vision.model_type.startswith("qwen2_5")
    inner = vision.hidden_size if windowed else vision.embed_dim
    mlp = 3 * inner * vision.intermediate_size if windowed else 2 * vision.mlp_ratio * inner**2
    embedding = 3 * vision.temporal_patch_size * vision.patch_size**2 * inner
    merger = (merge * inner) ** 2 + merge * inner * width
    pairs = vision.depth * patches**2
    if windowed:
        full = len(vision.fullatt_block_indexes)
        whole, rest = divmod(side, vision.window_size // vision.patch_size)
        in_windows = (whole * (vision.window_size // vision.patch_size) ** 2 + rest**2) ** 2
        pairs = full * patches**2 + (vision.depth - full) * in_windows
    return (
        2 * patches * (vision.depth * (4 * inner**2 + mlp) + embedding)
        + 2 * patches / merge * merger
        + 4 * inner * pairs
    )


def per_prompt(way: Way, model: Costs, prompt: int, completion: int, group: int) -> float:
    """FLOPs of a step for one prompt: `prompt` tokens, `group` completions of `completion` tokens.

    `shared` counts our default: the pass over the prompt that begins the rollout serves the loss,
    and the reference makes a pass of its own, tower included; the last layer runs for the tokens
    that predict one.
    """
    seen = model.image + model.text(prompt, logits=1)
    # one position a step, from the second token on; the first is the prefill's
    decode = group * model.text(completion, behind=prompt, logits=completion)
    if way == "shared":
        seen -= (prompt - 1) * model.top
        scored = group * model.text(completion, behind=prompt, logits=completion)
        return seen + decode + scored + 2 * (seen + scored) + seen + scored
    prefill = model.image + model.text(prompt, logits=prompt if way == "g_copies" else 1)
    row = model.image + model.text(
        prompt + completion, logits=prompt + completion if way == "g_copies" else completion
    )
    return group * prefill + decode + group * 4 * row


def peak_rate(device: torch.device) -> tuple[float, str]:
    """Peak FLOP/s of this machine and its source: a data sheet, or a large matmul timed here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, rate in PEAKS.items():
            if part in name:
                return rate, f"data sheet of the {part}, bfloat16, dense"
    from torch.utils.benchmark import Timer

    dtype, size = (torch.bfloat16, 8192) if device.type == "cuda" else (torch.float32, 1024)
    left = torch.rand(size, size, device=device, dtype=dtype)
    timer = Timer("left @ left", globals={"left": left}, num_threads=torch.get_num_threads())
    fastest = min(timer.blocked_autorange(min_run_time=0.3).times)
    return (
        2 * size**3 / fastest,
        f"product of {size} x {size} matrices in {str(dtype).removeprefix('torch.')}, timed",
    )
