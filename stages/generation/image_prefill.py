"""What a policy makes of images and of what stands before them, once for all the words that are put
behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.errors import InputError
from stages.generation.image_loader import Processed
from stages.policy.prefill import pass_over_prompts
from stages.policy.prompt_batch import PromptBatch, backbone

TOGETHER: Final = 32
"""Images that go through the policy together: enough for any device, and each takes tens of MB on
its way.
"""


@dataclass(frozen=True)
class Prefixes:
    """Keys and values of U prefixes, padded on the left to P tokens.

    `layers`, a pair of (U, H, P, D) for each; `lengths`, tokens without padding; `next`, (3, U),
    the position of the token that follows.
    """

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]
    next: Tensor


def pass_over_images(
    policy: nn.Module,
    processor: Any,
    head: Sequence[int],
    follower: int,
    images: Iterable[Processed],
) -> Prefixes:
    """Run token ids that stand before an image, and the tokens of each image behind them.

    `follower` is any token of text that may come next. Raises InputError if a GPU's memory does not
    hold one image.
    """
    parts: list[list[tuple[Tensor, Tensor]]] = []
    lengths: list[int] = []
    following: list[Tensor] = []
    stream, together = iter(images), TOGETHER
    waiting: list[Processed] = []
    while waiting or (waiting := list(islice(stream, TOGETHER))):
        batch, positions = _prompts(policy, processor, head, follower, waiting[:together])
        short: torch.OutOfMemoryError | None = None
        try:
            done = pass_over_prompts(policy, batch, batch.image_inputs)
        except torch.OutOfMemoryError as error:
            short = error.with_traceback(None)  # which holds what took the memory
        if short is not None:
            if together == 1:
                said = str(short).splitlines()[0]
                raise InputError(
                    f"out of GPU memory with one image ({said}): set base.max_pixels lower, or free"
                    " the GPU"
                ) from short
            together //= 2
            torch.cuda.empty_cache()
            continue
        parts.append(list(done.keys_values))
        lengths += batch.mask.sum(1).tolist()
        following.append(positions)
        waiting = waiting[together:]
    width = max(lengths)
    layers = []
    for number in range(
        len(parts[0])
    ):  # a layer at a time, so that the parts of one alone are there twice
        layers.append(
            (
                _stack([part[number][0] for part in parts], width),
                _stack([part[number][1] for part in parts], width),
            )
        )
        for part in parts:
            part[number] = layers[-1]
    return Prefixes(layers, lengths, torch.cat(following, dim=1))


def _prompts(
    policy: Any, processor: Any, head: Sequence[int], follower: int, images: Sequence[Processed]
) -> tuple[PromptBatch, Tensor]:
    """The prefixes of some images as prompts, and the position (3, U) behind each."""
    token, merged = processor.image_token_id, processor.image_processor.merge_size**2
    rows = [[*head, *[token] * (int(each.grid.prod()) // merged), follower] for each in images]
    width = max(len(row) for row in rows)
    ids = torch.tensor(
        [[processor.tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]
    )
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    grids = torch.stack([each.grid for each in images])
    positions, _ = backbone(policy).get_rope_index(
        ids, (ids == token).int(), image_grid_thw=grids, attention_mask=mask
    )
    device = policy.device
    return (
        PromptBatch(
            ids=ids[:, :-1].to(device),
            mask=mask[:, :-1].to(device),
            positions=positions[..., :-1].to(device),
            pixel_values=torch.cat([each.patches for each in images]).to(device),
            image_grid_thw=grids.to(device),
            image_counts=(1,) * len(images),
        ),
        positions[..., -1].to(device),
    )


def _stack(parts: Sequence[Tensor], width: int) -> Tensor:
    """Keys or values (U, H, P, D) of several passes as one, padded on the left to the widest."""
    return torch.cat([functional.pad(each, (0, 0, width - each.shape[2], 0)) for each in parts])
