"""Attention masks of several dimensions, in the form that kernels take without converting it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from stages.policy.prompt_batch import unwrap

_ALIGNMENT: Final = 8
"""Numbers between the beginnings of rows that CUDA's memory-efficient attention needs."""


def additive(mask: Tensor, policy: Any) -> Tensor:
    """A boolean mask as numbers to add to scores: 0 where true, else minus infinity.

    In the type that the policy computes in, its rows at multiples of 8 numbers in memory. Kernels
    would convert a boolean mask, and copy one of other rows, in every layer; eager attention takes
    numbers only.
    """
    kind = mask.device.type
    dtype = unwrap(policy).dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    numbers = _aligned_zeros(mask.shape, dtype, mask.device)
    return numbers.masked_fill_(~mask, -torch.inf)


def aligned(numbers: Tensor) -> Tensor:
    """The same numbers (..., T) in rows as `additive` lays them, which indexing does not keep."""
    return _aligned_zeros(numbers.shape, numbers.dtype, numbers.device).copy_(numbers)


def _aligned_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    *rows, width = shape
    zeros = torch.zeros(*rows, width + -width % _ALIGNMENT, dtype=dtype, device=device)
    return zeros[..., :width]


def include_diagonal(mask: Tensor) -> Tensor:
    """Let every query of a boolean mask (..., T, T) attend to itself, padding too.

    A softmax over nothing would be NaN, and spread.
    """
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
