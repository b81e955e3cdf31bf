"""Weights of a policy that is never trained, in the type in which autocast computes with them."""

from __future__ import annotations

import torch
from torch import nn


def store_rounded(policy: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of linear layers, once, to the type that autocast converts them to.

    Autocast converts each of them in every pass that uses it, with the same result; what it
    computes is the same, bit for bit. Embeddings, and an output layer that shares their weights,
    norms and the convolution of the patches stay as they are: outside autocast's linear layers
    their type decides that of the result.
    """
    embeddings = {id(each.weight) for each in policy.modules() if isinstance(each, nn.Embedding)}
    for module in policy.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings:
            module.to(dtype)
