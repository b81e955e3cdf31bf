"""Prefill: a policy's forward pass over prompts, reused to sample and score completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from stages.policy.last_layer import narrow_last_layer
from stages.policy.masks import additive, include_diagonal
from stages.policy.prompt_batch import PromptBatch

ImageInputs = Callable[[Tensor], dict[str, Any]]
"""Token ids (B, T) of rows -> arguments of a policy's forward for them and their images.

Either `PromptBatch.image_inputs` (pixels) or precomputed features of the images.
"""


@dataclass(frozen=True)
class PromptPass:
    """Result of a forward pass over B prompts of P tokens.

    `keys_values`: a pair of (B, H, P, D) per layer; `logits`: (B, V), of the first completion
    token.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    logits: Tensor

    def cache(self, tokens: int, repeats: int = 1) -> DynamicCache:
        """KV cache of the first `tokens` tokens, each row `repeats` times: B * repeats rows.

        Gradients flow through it into this pass, if it has any.
        """
        pairs = []
        for keys, values in self.keys_values:
            pair = (keys[:, :, :tokens], values[:, :, :tokens])
            if repeats > 1:
                pair = (
                    pair[0].repeat_interleave(repeats, 0),
                    pair[1].repeat_interleave(repeats, 0),
                )
            pairs.append(pair)
        return DynamicCache(pairs)

    def detached(self) -> PromptPass:
        """The same pass without gradients, for a rollout."""
        return PromptPass(
            tuple((keys.detach(), values.detach()) for keys, values in self.keys_values),
            self.logits.detach(),
        )


def prefill_prompts(
    policy: nn.Module, prompts: PromptBatch, image_inputs: ImageInputs
) -> PromptPass:
    """Run B prompts and their images through the policy."""
    # without padding None selects the attention's own causal mask, which fast kernels support
    mask = None
    if prompts.is_padded:
        width = prompts.ids.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=prompts.ids.device).tril()
        seen = include_diagonal(causal & prompts.mask.bool()[:, None, :])
        mask = additive(seen[:, None], policy)  # (B, 1, P, P)
    with narrow_last_layer(policy, 1):
        outputs = policy(
            **image_inputs(prompts.ids),
            attention_mask=mask,
            position_ids=prompts.positions,
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
    return PromptPass(
        tuple((layer.keys, layer.values) for layer in outputs.past_key_values.layers),
        outputs.logits[:, -1],
    )
