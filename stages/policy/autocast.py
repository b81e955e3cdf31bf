"""Weights of a policy that is never trained, in the type in which autocast computes with them."""

from __future__ import annotations

import torch
from torch import nn


def store_rounded(policy: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of linear layers, once, to the type that autocast converts them to.

    Autocast would convert each of them in every pass that uses it, so results are the same, bit for
    bit. Embeddings, an output layer that shares their weights, norms and the convolution of patches
    stay as they are: there, the type of the weights decides the type of the result.
    """
    embeddings = {id(each.weight) for each in policy.modules() if isinstance(each, nn.Embedding)}
    for module in policy.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings:
            module.to(dtype)
