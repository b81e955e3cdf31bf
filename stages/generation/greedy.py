"""Greedy decoding from a filled KV cache; finished rows are dropped from the batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from stages.policy.kv_cache import PreallocatedLayer

COMPACT_BELOW: Final = 0.5
"""Drop finished rows once at most this share of the batch is unfinished.

Dropping copies the cache of the remaining rows: all at once, this happens a few times only.
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
    eos_ids: Sequence[int],
    suppressed: Sequence[int] = (),
    repetition_penalty: float = 1.0,
    prompt_ids: Sequence[Sequence[int]] = (),
    compact_below: float = COMPACT_BELOW,
) -> list[list[int]]:
    """Decode B rows greedily; returns their token ids, end token included.

    Args:
        policy: A Qwen2-VL-like model.
        layers: KV cache of the prompts (W columns), with room for `max_tokens` - 1 more columns.
        mask: (B, W), true where a column of the cache is not padding.
        positions: (3, B), M-RoPE positions of the first generated token.
        logits: (B, V) of the first generated token.
        max_tokens: Upper bound of the length of a row.
        eos_ids: Tokens that end a row.
        suppressed: Tokens that are never generated.
        repetition_penalty: As transformers' `generate`, on tokens that a row has already.
        prompt_ids: The tokens of each row's prompt, for it; each kind of token once is enough.
        compact_below: See `COMPACT_BELOW`; 0 never drops a row before all have finished.
    """
    device = logits.device
    layers = list(layers)
    cache = DynamicCache()
    cache.layers = layers
    eos = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
    never = torch.tensor(list(suppressed), dtype=torch.long, device=device)
    penalise = None
    written = torch.zeros(len(logits), 0, dtype=torch.long, device=device)
    if repetition_penalty != 1.0:
        penalise = RepetitionPenaltyLogitsProcessor(repetition_penalty)
        # padded with a token of the row: one that stands there twice is penalised once
        longest = max(map(len, prompt_ids))
        padded = [[*ids, *repeat(ids[0], longest - len(ids))] for ids in prompt_ids]
        written = torch.tensor(padded, device=device)
    # output, one row per prompt; the tensors below hold the rows that are still in the batch
    output_ids = torch.zeros(len(logits), max_tokens, dtype=torch.long, device=device)
    lengths = torch.full((len(logits),), max_tokens, device=device)
    rows = torch.arange(len(logits), device=device)  # batch row -> output row
    unfinished = torch.ones(len(logits), dtype=torch.bool, device=device)
    # without padding no mask is needed, and attention can use its fastest kernel
    unpadded = bool(mask.all())
    mask = torch.cat([mask, mask.new_ones(len(mask), max_tokens)], dim=1)
    width = mask.shape[1] - max_tokens
    for step in range(max_tokens):
        scores = logits.float()
        if penalise is not None:
            scores = penalise(written, scores)
        chosen = scores.index_fill(1, never, -torch.inf).argmax(-1)
        if penalise is not None:
            written = torch.cat([written, chosen[:, None]], dim=1)
        output_ids[rows, step] = chosen
        ended = unfinished & torch.isin(chosen, eos)
        lengths[rows[ended]] = step + 1
        unfinished = unfinished & ~ended
        remaining = int(unfinished.sum())
        if step == max_tokens - 1 or not remaining:
            break
        if remaining <= compact_below * len(rows):
            selected = unfinished.nonzero()[:, 0]
            for layer in layers:
                layer.select_rows(selected)
            rows = rows[selected]
            mask = mask[selected]
            positions = positions[:, selected]
            chosen = chosen[selected]
            written = written[selected]
            unfinished = unfinished[selected]
        logits = policy(
            input_ids=chosen[:, None],
            attention_mask=None if unpadded else mask[:, None, None, : width + step + 1],
            position_ids=(positions + step)[..., None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    # tokens after a row's end are not part of it
    return [row[:length] for row, length in zip(output_ids.tolist(), lengths.tolist(), strict=True)]
