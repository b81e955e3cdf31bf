"""Attention masks of several dimensions, in the form that kernels take without converting it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.policy.prompt_batch import unwrap


def additive(mask: Tensor, policy: Any) -> Tensor:
    """A boolean mask as numbers to add to scores: 0 where true, else minus infinity.

    In the type that the policy computes in. A boolean mask would be converted in every layer, and
    is not what eager attention takes.
    """
    kind = mask.device.type
    dtype = unwrap(policy).dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def include_diagonal(mask: Tensor) -> Tensor:
    """Let every query of a boolean mask (..., T, T) attend to itself, padding too.

    A softmax over nothing would be NaN, and spread.
    """
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
