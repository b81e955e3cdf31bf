"""A policy's pass over prompts, behind which completions are sampled and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from stages.policy.last_layer import narrow_last_layer
from stages.policy.prompt_batch import PromptBatch

ImageInputs = Callable[[Tensor], dict[str, Any]]
"""From the ids of rows to what a policy's forward takes for them and the images in them:
`PromptBatch.image_inputs`, or features.
"""


@dataclass(frozen=True)
class PromptPass:
    """A policy's pass over B prompts.

    `keys_values`, a pair of (B, H, P, D) for each layer; `logits` (B, V) of the first completion
    token.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    logits: Tensor

    def cache(self, tokens: int, repeats: int = 1) -> DynamicCache:
        """A cache of the first `tokens` tokens, rows repeated `repeats` times, with gradients."""
        pairs = [tuple(each[:, :, :tokens] for each in pair) for pair in self.keys_values]
        if repeats > 1:
            pairs = [tuple(each.repeat_interleave(repeats, 0) for each in pair) for pair in pairs]
        return DynamicCache(pairs)

    def detached(self) -> PromptPass:
        """The same without gradients, for a rollout."""
        return PromptPass(
            tuple((keys.detach(), values.detach()) for keys, values in self.keys_values),
            self.logits.detach(),
        )


def prefill_prompts(policy: nn.Module, prompts: PromptBatch, images: ImageInputs) -> PromptPass:
    """Run B prompts and their images once."""
    mask = None  # all real: the attention's own causal mask, which fast kernels know
    if not bool(prompts.mask.all()):
        width = prompts.ids.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=prompts.ids.device).tril()
        mask = include_diagonal(causal & prompts.mask.bool()[:, None, :])[:, None]
    with narrow_last_layer(policy, 1):
        out = policy(
            **images(prompts.ids),
            attention_mask=mask,
            position_ids=prompts.positions,
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
    return PromptPass(
        tuple((layer.keys, layer.values) for layer in out.past_key_values.layers), out.logits[:, -1]
    )


def include_diagonal(mask: Tensor) -> Tensor:
    """Let every query attend to itself, padding included: a fully masked row's softmax is NaN."""
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
