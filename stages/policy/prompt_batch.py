"""Batch of prompts with their images, one row per prompt, however many completions it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stages.core.errors import InputError


@dataclass(frozen=True)
class PromptBatch:
    """B prompts, left-padded to P tokens, with their images.

    `ids` and `mask`: (B, P); `positions`: (3, B, P), M-RoPE; `pixel_values`: (patches, features)
    and `image_grid_thw`: (images, 3), of all prompts in order; `image_counts`: images per prompt;
    `lengths`: tokens per prompt, known without asking the device; `image_paths`: of all images in
    order, where they are known; empty: of none.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    pixel_values: Tensor
    image_grid_thw: Tensor
    image_counts: tuple[int, ...]
    lengths: tuple[int, ...]
    image_paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        """B."""
        return len(self.ids)

    @property
    def is_padded(self) -> bool:
        """Whether a prompt is shorter than P."""
        return min(self.lengths) < self.ids.shape[1]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> PromptBatch:
        """The same batch on a device."""
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            positions=self.positions.to(device, non_blocking=non_blocking),
            pixel_values=self.pixel_values.to(device, non_blocking=non_blocking),
            image_grid_thw=self.image_grid_thw.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> PromptBatch:
        """The same batch in pinned memory, from which a GPU copies while the host goes on."""
        return replace(
            self,
            ids=self.ids.pin_memory(),
            mask=self.mask.pin_memory(),
            positions=self.positions.pin_memory(),
            pixel_values=self.pixel_values.pin_memory(),
            image_grid_thw=self.image_grid_thw.pin_memory(),
        )

    def image_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Arguments of a policy's forward for rows (B, T) that begin with these prompts."""
        return {
            "input_ids": ids,
            "pixel_values": self.pixel_values,
            "image_grid_thw": self.image_grid_thw,
        }

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """The prompts at some rows, with their images."""
        if list(rows) == list(range(len(self))):
            return self
        grids = torch.split(self.image_grid_thw, list(self.image_counts))
        sizes = iter(self.image_grid_thw.prod(-1).tolist())  # one copy from the device
        patches = torch.split(
            self.pixel_values, [sum(islice(sizes, count)) for count in self.image_counts]
        )
        names = iter(self.image_paths)
        paths = [tuple(islice(names, count)) for count in self.image_counts]
        index = torch.tensor(list(rows), device=self.ids.device)
        return PromptBatch(
            self.ids[index],
            self.mask[index],
            self.positions[:, index],
            torch.cat([patches[row] for row in rows]),
            torch.cat([grids[row] for row in rows]),
            tuple(self.image_counts[row] for row in rows),
            tuple(self.lengths[row] for row in rows),
            tuple(chain.from_iterable(paths[row] for row in rows)),
        )


def concatenate_prompts(batches: Sequence[PromptBatch]) -> PromptBatch:
    """The prompts of several batches as one, padded to the longest."""
    width = max(each.ids.shape[1] for each in batches)

    def padded(name: str) -> list[Tensor]:
        return [pad(getattr(each, name), (width - each.ids.shape[1], 0)) for each in batches]

    paths = tuple(chain.from_iterable(each.image_paths for each in batches))
    known = len(paths) == sum(len(each.image_grid_thw) for each in batches)
    return PromptBatch(
        ids=torch.cat(padded("ids")),
        mask=torch.cat(padded("mask")),
        positions=torch.cat(padded("positions"), dim=1),
        pixel_values=torch.cat([each.pixel_values for each in batches]),
        image_grid_thw=torch.cat([each.image_grid_thw for each in batches]),
        image_counts=tuple(chain.from_iterable(each.image_counts for each in batches)),
        lengths=tuple(chain.from_iterable(each.lengths for each in batches)),
        image_paths=paths if known else (),
    )


def process_prompts(
    processor: Any, policy: nn.Module, chats: Sequence[list[dict[str, Any]]], device: torch.device
) -> PromptBatch:
    """Tokenise chats whose messages contain their images (PIL); each is processed once.

    Raises InputError, with the beginning of the question, if its image tokens do not match its
    images.
    """
    fields = processor.apply_chat_template(
        conversation=list(chats),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    image_counts = tuple(len(_parts(chat, "image")) for chat in chats)
    grids: Sequence[Tensor] = ()
    if "image_grid_thw" in fields:
        grids = torch.split(fields["image_grid_thw"], list(image_counts))
    _check_image_tokens(processor, chats, fields["input_ids"], grids)
    positions, _ = backbone(policy).get_rope_index(
        fields["input_ids"],
        fields["mm_token_type_ids"],
        image_grid_thw=fields["image_grid_thw"],
        attention_mask=fields["attention_mask"],
    )
    return PromptBatch(
        ids=fields["input_ids"].to(device),
        mask=fields["attention_mask"].to(device),
        positions=positions.to(device),
        pixel_values=fields["pixel_values"].to(device),
        image_grid_thw=fields["image_grid_thw"].to(device),
        image_counts=image_counts,
        lengths=tuple(fields["attention_mask"].sum(1).tolist()),
    )


def _check_image_tokens(
    processor: Any, chats: Sequence[list[dict[str, Any]]], ids: Tensor, grids: Sequence[Tensor]
) -> None:
    """`grids`: per chat, the grids (images, 3) of its images; empty if no chat has one."""
    patches_per_token = processor.image_processor.merge_size**2
    counts = (ids == processor.image_token_id).sum(1).tolist()
    for row, chat in enumerate(chats):
        expected = int(grids[row].prod(-1).sum()) // patches_per_token if grids else 0
        if counts[row] != expected or not expected:
            words = " ".join(part["text"] for part in _parts(chat, "text"))
            raise InputError(
                f"the question {words[:80]!r} has {counts[row]} image tokens, its images need"
                f" {expected}: every question needs an image, and none may contain"
                f" {processor.image_token}"
            )


def _parts(chat: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The parts of one type in all messages of a chat."""
    parts: list[dict[str, Any]] = []
    for message in chat:
        parts += [part for part in message["content"] if part["type"] == kind]
    return parts


def backbone(policy: Any) -> Any:
    """The model below the language head, without parallel wrappers or an adapter."""
    policy = unwrap(policy)
    return (policy.get_base_model() if hasattr(policy, "get_base_model") else policy).model


def unwrap(policy: Any) -> Any:
    """The policy inside parallel wrappers (DistributedDataParallel, DeepSpeed's engine)."""
    while isinstance(getattr(policy, "module", None), nn.Module):
        policy = policy.module
    return policy


def recomputes_activations(policy: Any) -> bool:
    """Whether a pass made now recomputes its activations for gradients (checkpointing)."""
    return torch.is_grad_enabled() and bool(
        getattr(unwrap(policy), "is_gradient_checkpointing", False)
    )
