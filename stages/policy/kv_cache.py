"""Preallocated key-value cache layer.

transformers' layer grows by concatenation, which copies everything at every step.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values (B, H, T, D) in tensors that have more columns than are filled."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        """Take tensors of the final width, of which the first columns hold something."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._storage = [keys, values]
        self._fill(filled)

    @classmethod
    def from_prefix(cls, keys: Tensor, values: Tensor, more: int) -> Self:
        """A copy of keys and values with room for `more` columns behind them."""
        width = keys.shape[2]
        roomy_keys, roomy_values = (
            each.new_empty(*each.shape[:2], width + more, each.shape[3]) for each in (keys, values)
        )
        roomy_keys[:, :, :width], roomy_values[:, :, :width] = keys, values
        return cls(roomy_keys, roomy_values, filled=width)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write new columns behind the old."""
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for room, new in zip(self._storage, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self._fill(end)
        return self.keys, self.values

    def select_rows(self, rows: Tensor) -> None:
        """Let go of all rows but these."""
        filled = self.keys.shape[2]
        self._storage = [room[rows] for room in self._storage]
        self._fill(filled)

    def _fill(self, columns: int) -> None:
        self.keys, self.values = (each[:, :, :columns] for each in self._storage)
