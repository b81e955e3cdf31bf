"""Preallocated KV cache layer: appending writes into spare columns.

transformers' DynamicLayer concatenates instead, which copies the whole cache at every step.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values (B, H, T, D): views of the filled columns of wider tensors."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        """Take ownership of tensors of the final width, of which `filled` columns hold data."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._storage = [keys, values]
        self._set_filled(filled)

    @classmethod
    def from_prefix(cls, keys: Tensor, values: Tensor, more: int) -> Self:
        """Copy keys and values into a layer with room for `more` columns after them."""
        return cls(_widened(keys, more), _widened(values, more), filled=keys.shape[2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append columns; returns all filled keys and values."""
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for storage, states in zip(self._storage, (key_states, value_states), strict=True):
            storage[:, :, start:end] = states
        self._set_filled(end)
        return self.keys, self.values

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows of the batch except these."""
        filled = self.keys.shape[2]
        self._storage = [storage[rows] for storage in self._storage]
        self._set_filled(filled)

    def _set_filled(self, columns: int) -> None:
        self.keys, self.values = (storage[:, :, :columns] for storage in self._storage)


def _widened(states: Tensor, more: int) -> Tensor:
    batch, heads, width, dim = states.shape
    storage = states.new_empty(batch, heads, width + more, dim)
    storage[:, :, :width] = states
    return storage


class FixedWidthLayer(PreallocatedLayer):
    """A cache of which attention always sees all columns: shapes stay the same, step by step.

    The mask must hide the columns that are not filled; `columns` (on the device) says which ones
    the next update fills.
    """

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        """As `PreallocatedLayer`; unfilled columns become zero, as a masked NaN would spread."""
        super().__init__(keys, values, filled)
        for storage in self._storage:
            storage[:, :, filled:] = 0
        self._set_filled(keys.shape[2])
        self.columns: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write `columns`; returns all keys and values."""
        assert self.columns is not None
        self.keys.index_copy_(2, self.columns, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.columns, value_states.to(self.values.dtype))
        return self.keys, self.values
