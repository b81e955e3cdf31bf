"""Prompts and their images as tensors: one row per prompt, however many completions it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.errors import InputError


@dataclass(frozen=True)
class PromptBatch:
    """B prompts, padded on the left to P tokens.

    `ids` and `mask` (B, P); `positions` (3, B, P), M-RoPE; `pixel_values` (patches, features) and
    `image_grid_thw` (images, 3) of all prompts in order; `image_counts`, how many images each
    prompt has.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    pixel_values: Tensor
    image_grid_thw: Tensor
    image_counts: tuple[int, ...]

    def __len__(self) -> int:
        """B."""
        return len(self.ids)

    def image_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Forward inputs for rows (B, T) that begin with these prompts: ids and pixels."""
        return {
            "input_ids": ids,
            "pixel_values": self.pixel_values,
            "image_grid_thw": self.image_grid_thw,
        }

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """Some of the prompts, images with them."""
        if list(rows) == list(range(len(self))):
            return self
        by_row = torch.split(self.image_grid_thw, list(self.image_counts))
        patches = torch.split(self.pixel_values, [int(grid.prod(-1).sum()) for grid in by_row])
        index = torch.tensor(list(rows), device=self.ids.device)
        return PromptBatch(
            self.ids[index],
            self.mask[index],
            self.positions[:, index],
            torch.cat([patches[row] for row in rows]),
            torch.cat([by_row[row] for row in rows]),
            tuple(self.image_counts[row] for row in rows),
        )


def process_prompts(
    processor: Any, policy: nn.Module, chats: Sequence[list[dict[str, Any]]], device: torch.device
) -> PromptBatch:
    """Tokenise chats whose messages hold their images (PIL); each chat and image once.

    Raises InputError, with the beginning of the question, where the tokens that stand for images
    are not as many as the images need.
    """
    fields = processor.apply_chat_template(
        conversation=list(chats),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    images = tuple(
        sum(part["type"] == "image" for message in chat for part in message["content"])
        for chat in chats
    )
    grids = (
        torch.split(fields["image_grid_thw"], list(images)) if "image_grid_thw" in fields else ()
    )
    _check_placeholders(processor, chats, fields["input_ids"], grids)
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
        image_counts=images,
    )


def _check_placeholders(
    processor: Any, chats: Sequence[list[dict[str, Any]]], ids: Tensor, grids: Sequence[Tensor]
) -> None:
    merged = processor.image_processor.merge_size**2
    found = (ids == processor.image_token_id).sum(1).tolist()
    for row, chat in enumerate(chats):
        needed = int(grids[row].prod(-1).sum()) // merged if grids else 0
        if found[row] != needed or not needed:
            words = " ".join(
                part["text"]
                for message in chat
                for part in message["content"]
                if part["type"] == "text"
            )
            raise InputError(
                f"the question {words[:80]!r} has {found[row]} tokens that stand for images, its"
                f" images need {needed}: every question needs an image, and none may contain"
                f" {processor.image_token}"
            )


def backbone(policy: Any) -> Any:
    """The model below the language head, without adapters or parallel wrappers."""
    policy = unwrapped(policy)
    return (policy.get_base_model() if hasattr(policy, "get_base_model") else policy).model


def unwrapped(policy: Any) -> Any:
    """The policy without its parallel wrapper (DistributedDataParallel, DeepSpeed engine)."""
    while isinstance(getattr(policy, "module", None), nn.Module):
        policy = policy.module
    return policy


def recomputes_activations(policy: Any) -> bool:
    """Are activations of a pass made now to be computed a second time, for its gradients?"""
    return torch.is_grad_enabled() and bool(
        getattr(unwrapped(policy), "is_gradient_checkpointing", False)
    )
