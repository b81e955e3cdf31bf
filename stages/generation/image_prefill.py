"""Prefill of images: their keys and values are computed once for all questions about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.errors import InputError
from stages.generation.image_loader import ProcessedImage
from stages.policy.prefill import prefill_prompts
from stages.policy.prompt_batch import PromptBatch, backbone

IMAGES_PER_PASS: Final = 32
"""Images per forward pass: enough to saturate any device; each takes tens of MB of activations."""


@dataclass(frozen=True)
class Prefixes:
    """KV cache of U prefixes (chat head and image), left-padded to P tokens.

    `layers`: a pair of keys and values (U, H, P, D) per layer; `lengths`: tokens without padding;
    `next_positions`: (3, U), M-RoPE position of the token after each prefix.
    """

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]
    next_positions: Tensor


def prefill_images(
    policy: nn.Module,
    processor: Any,
    head: Sequence[int],
    follower: int,
    images: Iterable[ProcessedImage],
) -> Prefixes:
    """Run each prefix through the policy: the token ids of `head`, then the tokens of an image.

    `follower` is any text token that may come next: it is not run, but gives the next position.
    Batches that do not fit in GPU memory are halved; raises InputError if one image does not fit.
    """
    parts: list[list[tuple[Tensor, Tensor]]] = []  # per pass, then per layer
    lengths: list[int] = []
    next_positions: list[Tensor] = []
    stream = iter(images)
    size = IMAGES_PER_PASS
    waiting: list[ProcessedImage] = []
    while waiting or (waiting := list(islice(stream, IMAGES_PER_PASS))):
        prompts, following = _prefix_prompts(policy, processor, head, follower, waiting[:size])
        shortage: torch.OutOfMemoryError | None = None
        try:
            prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
        except torch.OutOfMemoryError as error:
            # the frames of its traceback hold the tensors that took the memory
            shortage = error.with_traceback(None)
        if shortage is not None:
            if size == 1:
                cause = str(shortage).splitlines()[0]
                raise InputError(
                    f"out of GPU memory with one image ({cause}): lower base.max_pixels, or free"
                    " the GPU"
                ) from shortage
            size //= 2
            torch.cuda.empty_cache()
            continue
        parts.append(list(prompt_pass.keys_values))
        lengths += prompts.mask.sum(1).tolist()
        next_positions.append(following)
        waiting = waiting[size:]
    layers = _join_passes(parts, max(lengths))
    return Prefixes(layers, lengths, torch.cat(next_positions, dim=1))


def _join_passes(
    parts: list[list[tuple[Tensor, Tensor]]], width: int
) -> list[tuple[Tensor, Tensor]]:
    """Concatenate the passes layer by layer, left-padded to `width`.

    Each layer's parts are replaced by the result, so only one layer is in memory twice.
    """
    layers = []
    for number in range(len(parts[0])):
        keys = _pad_and_concatenate([part[number][0] for part in parts], width)
        values = _pad_and_concatenate([part[number][1] for part in parts], width)
        layers.append((keys, values))
        for part in parts:
            part[number] = layers[-1]
    return layers


def _pad_and_concatenate(parts: Sequence[Tensor], width: int) -> Tensor:
    """Join keys or values (U, H, P, D) of several passes, left-padded to `width` columns."""
    return torch.cat([functional.pad(each, (0, 0, width - each.shape[2], 0)) for each in parts])


def _prefix_prompts(
    policy: Any,
    processor: Any,
    head: Sequence[int],
    follower: int,
    images: Sequence[ProcessedImage],
) -> tuple[PromptBatch, Tensor]:
    """The prefixes of some images as prompts, and the position (3, U) after each."""
    image_token = processor.image_token_id
    patches_per_token = processor.image_processor.merge_size**2
    rows = []
    for image in images:
        image_tokens = int(image.grid.prod()) // patches_per_token
        rows.append([*head, *[image_token] * image_tokens, follower])
    width = max(len(row) for row in rows)
    pad = processor.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    grids = torch.stack([image.grid for image in images])
    # M-RoPE gives an image fewer positions than tokens: only the model knows what comes next
    positions, _ = backbone(policy).get_rope_index(
        ids, (ids == image_token).int(), image_grid_thw=grids, attention_mask=mask
    )
    device = policy.device
    prompts = PromptBatch(
        ids=ids[:, :-1].to(device),
        mask=mask[:, :-1].to(device),
        positions=positions[..., :-1].to(device),
        pixel_values=torch.cat([image.patches for image in images]).to(device),
        image_grid_thw=grids.to(device),
        image_counts=(1,) * len(images),
    )
    return prompts, positions[..., -1].to(device)
