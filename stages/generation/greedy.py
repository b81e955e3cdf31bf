"""Greedy completions behind a cache that is filled; rows that have ended leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from stages.policy.kv_cache import PreallocatedLayer

COMPACT_BELOW: Final = 0.5
"""Rows that have ended leave when at most this share is still open: all at once, so that what stays
is copied a few times only.
"""


@torch.inference_mode()
def complete_greedily(
    policy: nn.Module,
    layers: Sequence[PreallocatedLayer],
    mask: Tensor,
    positions: Tensor,
    logits: Tensor,
    *,
    max_tokens: int,
    ends: Sequence[int],
    suppressed: Sequence[int] = (),
    leave: float = COMPACT_BELOW,
) -> list[list[int]]:
    """The likeliest token, step after step, for each of B rows: lists of token ids, the end token
    among them.

    `layers` hold the prompts' keys and values, with room for `max_tokens` - 1 columns, of which
    `mask` (B, W) says what is no padding; `positions` (3, B), M-RoPE, and `logits` (B, V) are those
    of the first token. `suppressed` tokens are never written.
    """
    device = logits.device
    layers = list(layers)
    cache = DynamicCache()
    cache.layers = layers
    stop, never = (
        torch.tensor(list(each), dtype=torch.long, device=device) for each in (ends, suppressed)
    )
    written = torch.zeros(len(logits), max_tokens, dtype=torch.long, device=device)
    rows = torch.arange(len(logits), device=device)  # of what is left of the batch
    open_ = torch.ones(len(logits), dtype=torch.bool, device=device)
    lengths = torch.full((len(logits),), max_tokens, device=device)
    # without padding there is nothing to mask, and no mask lets the attention take its fastest way
    whole = bool(mask.all())
    mask = torch.cat([mask, mask.new_ones(len(mask), max_tokens)], dim=1)
    width = mask.shape[1] - max_tokens
    for step in range(max_tokens):
        chosen = logits.float().index_fill(1, never, -torch.inf).argmax(-1)
        written[rows, step] = chosen
        ended = open_ & torch.isin(chosen, stop)
        lengths[rows[ended]] = step + 1
        open_ = open_ & ~ended
        left = int(open_.sum())
        if step == max_tokens - 1 or not left:
            break
        if left <= leave * len(rows):
            stay = open_.nonzero()[:, 0]
            for layer in layers:
                layer.select_rows(stay)
            rows, mask, positions, chosen, open_ = (
                rows[stay],
                mask[stay],
                positions[:, stay],
                chosen[stay],
                open_[stay],
            )
        logits = policy(
            input_ids=chosen[:, None],
            attention_mask=None if whole else mask[:, None, None, : width + step + 1],
            position_ids=(positions + step)[..., None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]
