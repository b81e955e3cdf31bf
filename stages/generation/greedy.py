"""Greedy decoding from a filled KV cache; finished rows are dropped from the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from stages.policy.kv_cache import PreallocatedLayer

COMPACT_BELOW: Final = 0.5
"""Drop finished rows once at most this share of the batch is unfinished.

Dropping copies the cache of the remaining rows: all at once, this happens a few times only.
"""


class RepetitionPenalty:
    """The repetition penalty of transformers' `generate`, for B rows of a vocabulary of V tokens.

    Scores of tokens that stand in a row, its prompt included, are divided by `penalty` if they are
    positive, and multiplied by it otherwise.
    """

    def __init__(self, penalty: float, prompts: Sequence[Sequence[int]], like: Tensor) -> None:
        """`prompts`: the token ids of each row's prompt; `like`: logits (B, V)."""
        self._penalty = penalty
        self._seen = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
        for row, ids in enumerate(prompts):
            self._seen[row, torch.tensor(sorted(set(ids)), device=like.device)] = True

    def apply(self, scores: Tensor) -> Tensor:
        """The penalised scores (B, V)."""
        penalised = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        return torch.where(self._seen, penalised, scores)

    def add(self, chosen: Tensor) -> None:
        """Add a token (B) to each row."""
        self._seen[torch.arange(len(chosen), device=chosen.device), chosen] = True

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows except these."""
        self._seen = self._seen[rows]


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
    repetition: RepetitionPenalty | None = None,
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
        repetition: Penalty on tokens that a row has already; holds its prompts.
        compact_below: See `COMPACT_BELOW`; 0 never drops a row before all have finished.
    """
    device = logits.device
    layers = list(layers)
    cache = DynamicCache()
    cache.layers = layers
    eos = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
    never = torch.tensor(list(suppressed), dtype=torch.long, device=device)
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
        if repetition is not None:
            scores = repetition.apply(scores)
        chosen = scores.index_fill(1, never, -torch.inf).argmax(-1)
        if repetition is not None:
            repetition.add(chosen)
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
            if repetition is not None:
                repetition.select_rows(selected)
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
