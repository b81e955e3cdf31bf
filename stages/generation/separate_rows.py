"""Rows of a batch behind a KV cache each, decoded side by side; finished ones can be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from stages.policy.kv_cache import PreallocatedLayer
from stages.policy.masks import additive, aligned


class SeparateRows:
    """The `Decoder` (stages.policy.decoding) of completions that have nothing in common."""

    def __init__(
        self,
        policy: Any,
        layers: Sequence[PreallocatedLayer],
        mask: Tensor,
        positions: Tensor,
        max_tokens: int,
    ) -> None:
        """Take ownership of `layers`.

        Args:
            policy: A Qwen2-VL-like model.
            layers: KV cache of R prompts (W columns), with room for `max_tokens` - 1 more columns.
            mask: (R, W), true where a column of the cache is not padding.
            positions: (3, R), M-RoPE positions of the first token of the completions.
            max_tokens: Upper bound of the length of a completion.
        """
        self._policy = policy
        self._layers = list(layers)
        self._cache = DynamicCache()
        self._cache.layers = self._layers
        self._positions = positions
        self._width = mask.shape[1]
        # without padding no mask is needed, and attention can use its fastest kernel
        self._mask: Tensor | None = None
        if not bool(mask.all()):
            columns = mask.new_zeros(len(mask), self._width + max_tokens)
            columns[:, : self._width] = mask
            columns[:, self._width :] = True
            self._mask = additive(columns[:, None, None], policy)  # (R, 1, 1, W + max_tokens)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (R, V) after the newest tokens (R,) of completions of these lengths (R,)."""
        self._width += 1
        logits: Tensor = self._policy(
            input_ids=tokens[:, None],
            attention_mask=None if self._mask is None else self._mask[..., : self._width],
            position_ids=(self._positions + lengths - 1)[..., None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> bool:
        """Drop all other rows, which copies the cache of these."""
        for layer in self._layers:
            layer.select_rows(rows)
        self._positions = self._positions[:, rows]
        if self._mask is not None:
            self._mask = aligned(self._mask[rows])
        return True
