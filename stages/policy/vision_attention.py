"""Attention of the vision tower over the patches of many images: one call per number of patches.

transformers' sdpa takes the images, and the windows of Qwen2.5-VL, one at a time, and asks the
device for their lengths in every layer. Here those of one length are a batch, and lengths are asked
for once per pass. Registered through transformers' AttentionInterface; chosen after loading, as
transformers would look for a package flash-attn first.
"""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.policy.prompt_batch import backbone

BATCHED: Final = "batched_sdpa_of_flash_lengths"
"""Its name: transformers passes lengths to implementations that have `flash` in theirs, and checks
those with `sdpa` for what sdpa needs.
"""

SETTING: Final = "sdpa_batched"
"""Its name in `base.attention`."""
_IMPLEMENTATION: Final = "_attn_implementation"

_plans = WeakIdKeyDictionary()
"""Cumulative lengths, the same tensor in all layers of a pass -> `_plan` of it."""


class _Plan(NamedTuple):
    """How patches are brought into an order by the length of their image.

    `sizes`: each length, and how many patches the images of that length have together; `order`: the
    places of all patches in this order; `back`: where each patch stands in it.
    """

    sizes: list[tuple[int, int]]
    order: Tensor
    back: Tensor


def _plan(cumulative: Tensor) -> _Plan:
    if cumulative not in _plans:
        places: dict[int, list[int]] = {}
        for start, end in pairwise(cumulative.tolist()):
            places.setdefault(end - start, []).extend(range(start, end))
        order = torch.tensor([*chain.from_iterable(places.values())])
        sizes = [(length, len(each)) for length, each in places.items()]
        device = cumulative.device
        _plans[cumulative] = _Plan(sizes, order.to(device), order.argsort().to(device))
    plan: _Plan = _plans[cumulative]
    return plan


class _Permute(torch.autograd.Function):
    """`states.index_select(dim, order)` for a permutation `order`; its gradient is permuted back.

    torch would add up the gradients of an index, on a GPU after a sort: dozens of launches in place
    of one, in every block.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, dim: int, order: Tensor, back: Tensor) -> Tensor:
        """`back`: the inverse of `order`."""
        ctx.dim = dim
        ctx.save_for_backward(back)
        return states.index_select(dim, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Of the states alone."""
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(ctx.dim, back), None, None, None


def attend_by_length(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each of n images: (1, H, T, D), T patches in all, to (1, T, H, D).

    `cu_seq_lens_q`: (n + 1,), where each image begins, and T; `max_length_q`: patches of the
    largest.
    """
    assert attention_mask is None
    states = (query[0], key[0], value[0])

    def attend(length: int, *states: Tensor) -> Tensor:
        """Heads, patches and features (H, n * length, D) to (n * length, H, D)."""
        images = [each.unflatten(1, (-1, length)).transpose(0, 1) for each in states]
        attended, _ = sdpa_attention_forward(
            module, *images, None, dropout=dropout, scaling=scaling, is_causal=False
        )
        return attended.flatten(0, 1)

    # no length is above the largest, so all are equal if this is so; it asks the device for nothing
    if max_length_q * (len(cu_seq_lens_q) - 1) == query.shape[2]:
        return attend(max_length_q, *states)[None], None
    plan = _plan(cu_seq_lens_q)
    counts = [count for _, count in plan.sizes]
    parts = [_Permute.apply(each, 1, plan.order, plan.back).split(counts, 1) for each in states]
    attended = torch.cat(
        [
            attend(length, *of_length)
            for (length, _), of_length in zip(plan.sizes, zip(*parts, strict=True), strict=True)
        ]
    )
    return _Permute.apply(attended, 0, plan.back, plan.order)[None], None


def loadable(implementations: dict[str, str]) -> dict[str, str]:
    """What transformers can load, of `choose_attention`: sdpa in place of sdpa_batched."""
    return {part: "sdpa" if each == SETTING else each for part, each in implementations.items()}


def batch_images(policy: Any, batched: bool = True) -> None:
    """Let a vision tower with sdpa take images of one size together, or one at a time again."""
    config = backbone(policy).visual.config
    if getattr(config, _IMPLEMENTATION) in ("sdpa", BATCHED):
        setattr(config, _IMPLEMENTATION, BATCHED if batched else "sdpa")


def batches_images(policy: Any) -> bool:
    """Whether it does."""
    return bool(getattr(backbone(policy).visual.config, _IMPLEMENTATION) == BATCHED)


AttentionInterface.register(BATCHED, attend_by_length)
