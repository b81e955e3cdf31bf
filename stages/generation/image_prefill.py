"""Prefill of images: their keys and values are computed once for all questions about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.errors import InputError
from stages.generation.chat_tokens import ChatTokens
from stages.generation.image_loader import ProcessedImage
from stages.policy.prefill import prefill_prompts
from stages.policy.prompt_batch import PromptBatch, backbone

IMAGES_PER_PASS: Final = 32
"""Images per forward pass, unless one prefix has more: enough to saturate any device.

Each takes tens of MB of activations.
"""


@dataclass(frozen=True)
class Prefixes:
    """KV cache of U prefixes (the chat up to its last image), left-padded to P tokens.

    `layers`: a pair of keys and values (U, H, P, D) per layer; `lengths`: tokens without padding;
    `next_positions`: (3, U), M-RoPE position of the token after each prefix.
    """

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]
    next_positions: Tensor


def prefill_images(
    policy: nn.Module,
    processor: Any,
    chats: ChatTokens,
    follower: int,
    sequences: Iterable[Sequence[ProcessedImage]],
) -> Prefixes:
    """Run each prefix through the policy: a chat up to the last of its images.

    `follower` is any text token that may come next: it is not run, but gives the next position.
    Passes that do not fit in GPU memory are halved; raises InputError if one prefix does not fit.
    """
    parts: list[list[tuple[Tensor, Tensor]]] = []  # per pass, then per layer
    lengths: list[int] = []
    next_positions: list[Tensor] = []
    stream = iter(sequences)
    most_images = IMAGES_PER_PASS
    waiting: list[Sequence[ProcessedImage]] = []
    while _fill(waiting, stream):
        count = _count_for_pass(waiting, most_images)
        prompts, following = _prefix_prompts(policy, processor, chats, follower, waiting[:count])
        shortage: torch.OutOfMemoryError | None = None
        try:
            prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
        except torch.OutOfMemoryError as error:
            # the frames of its traceback hold the tensors that took the memory
            shortage = error.with_traceback(None)
        if shortage is not None:
            if count == 1:
                raise _too_large(len(waiting[0]), shortage) from shortage
            most_images = max(sum(prompts.image_counts) // 2, 1)
            torch.cuda.empty_cache()
            continue
        parts.append(list(prompt_pass.keys_values))
        lengths += prompts.lengths
        next_positions.append(following)
        del waiting[:count]
    layers = _join_passes(parts, max(lengths))
    return Prefixes(layers, lengths, torch.cat(next_positions, dim=1))


def _fill(
    waiting: list[Sequence[ProcessedImage]], stream: Iterator[Sequence[ProcessedImage]]
) -> bool:
    """Take enough of a stream for a pass; whether anything is waiting then."""
    images = sum(map(len, waiting))
    while images < IMAGES_PER_PASS and (taken := next(stream, None)) is not None:
        waiting.append(taken)
        images += len(taken)
    return bool(waiting)


def _count_for_pass(waiting: Sequence[Sequence[ProcessedImage]], most_images: int) -> int:
    """How many of the sequences, at least one, have at most so many images together."""
    images = len(waiting[0])
    count = 1
    while count < len(waiting) and images + len(waiting[count]) <= most_images:
        images += len(waiting[count])
        count += 1
    return count


def _too_large(images: int, shortage: torch.OutOfMemoryError) -> InputError:
    cause = str(shortage).splitlines()[0]
    if images == 1:
        return InputError(
            f"out of GPU memory with one image ({cause}): lower base.max_pixels, or free the GPU"
        )
    return InputError(
        f"out of GPU memory with one question about {images} images ({cause}): lower"
        " base.max_pixels, give the question fewer images (`images` or `slices` in its question"
        " file), or free the GPU"
    )


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
    chats: ChatTokens,
    follower: int,
    sequences: Sequence[Sequence[ProcessedImage]],
) -> tuple[PromptBatch, Tensor]:
    """The prefixes of some sequences of images as prompts, and the position (3, U) after each."""
    image_token = processor.image_token_id
    patches_per_token = processor.image_processor.merge_size**2
    rows = []
    for images in sequences:
        lengths = [int(image.grid.prod()) // patches_per_token for image in images]
        rows.append([*chats.with_images([[image_token] * each for each in lengths]), follower])
    width = max(len(row) for row in rows)
    pad = processor.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    all_images = list(chain.from_iterable(sequences))
    grids = torch.stack([image.grid for image in all_images])
    # M-RoPE gives an image fewer positions than tokens: only the model knows what comes next
    positions, _ = backbone(policy).get_rope_index(
        ids, (ids == image_token).int(), image_grid_thw=grids, attention_mask=mask
    )
    prompts = PromptBatch(
        ids=ids[:, :-1].contiguous(),
        mask=mask[:, :-1].contiguous(),
        positions=positions[..., :-1].contiguous(),
        pixel_values=torch.cat([image.patches for image in all_images]),
        image_grid_thw=grids,
        image_counts=tuple(map(len, sequences)),
        lengths=tuple(len(row) - 1 for row in rows),
    )
    following = positions[..., -1].contiguous()
    device = policy.device
    if device.type == "cuda":  # the host prepares the next pass while the device copies
        prompts, following = prompts.pin_memory(), following.pin_memory()
    return prompts.to(device, non_blocking=True), following.to(device, non_blocking=True)
