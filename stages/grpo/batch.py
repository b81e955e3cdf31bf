"""A batch of prompts from the loader to the loss: processed once per group, in the loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import split_tensor_dict

from stages.grpo.drafts import DraftPass
from stages.policy.prompt_batch import PromptBatch, process_prompts

Example = dict[str, Any]
"""A row of the training set: its prompt, its opened images, and what the rewards need."""


class ExampleBatch(list[Example]):
    """N = B * G examples, one per completion, and their B prompts, processed on the CPU."""

    def __init__(self, examples: Iterable[Example], prompts: PromptBatch) -> None:
        super().__init__(examples)
        self.prompts = prompts

    def to(self, device: torch.device, non_blocking: bool = False) -> ExampleBatch:
        """The same batch with its prompts on a device: accelerate's loader moves what has `to`."""
        return ExampleBatch(self, self.prompts.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ExampleBatch:
        """The same batch with its prompts in pinned memory: torch's loader pins what has this."""
        return ExampleBatch(self, self.prompts.pin_memory())


class PromptCollator:
    """Collates examples, and processes one of the G equal prompts of each group.

    In a loader with workers that happens while the step before computes.
    """

    def __init__(self, processor: Any, policy: Any, group_size: int) -> None:
        self._processor = processor
        self._policy = policy
        self._group_size = group_size
        self._last: tuple[list[Example], PromptBatch] | None = None

    def __call__(self, examples: list[Example]) -> ExampleBatch:
        """Collate the N examples of a batch, G neighbours with the same prompt each.

        Raises InputError, with the beginning of the question, if its image tokens do not match its
        images.
        """
        # TRL loads a batch again for each step that learns from its completions
        if self._last is None or self._last[0] != examples:
            self._last = (examples, self._process(examples[:: self._group_size]))
        return ExampleBatch(examples, self._last[1])

    def _process(self, examples: Sequence[Example]) -> PromptBatch:
        chats = [
            prepare_multimodal_messages(example["prompt"], images=images_of(example))
            for example in examples
        ]
        prompts = process_prompts(self._processor, self._policy, chats, torch.device("cpu"))
        paths = list(chain.from_iterable(map(_paths_of, examples)))
        # known for all images or for none
        known = len(paths) == len(prompts.image_grid_thw)
        return replace(prompts, image_paths=tuple(paths) if known else ())


@dataclass
class Rollout:
    """What TRL's methods share of a batch of B prompts, from sampling to the loss.

    `examples`: one per completion, with images. `draft_pass`: the policy's pass over the prompts,
    with gradients, if the loss is to reuse it. `active_groups`: those of the B groups that the
    policy scores; None: all.
    """

    examples: Sequence[Example]
    prompts: PromptBatch
    draft_pass: DraftPass | None = None
    active_groups: list[int] | None = None

    def select(self, groups: Sequence[int]) -> Rollout:
        """Some of the groups; a pass that all of them share cannot be divided."""
        size = len(self.examples) // len(self.prompts)
        assert self.draft_pass is None or len(groups) == len(self.prompts)
        examples: list[Example] = []
        for group in groups:
            examples += self.examples[group * size : (group + 1) * size]
        return Rollout(examples, self.prompts.select(groups), self.draft_pass)


def whole_groups(scored: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Split a generation batch into `count` micro-batches, prompts with their completions."""
    rollout: Rollout = scored.pop("rollout")
    size = len(rollout.prompts) // count
    return [
        part | {"rollout": rollout.select(range(number * size, (number + 1) * size))}
        for number, part in enumerate(split_tensor_dict(scored, count))
    ]


def without_images(example: Example) -> Example:
    """An example as TRL gets it, which then processes no image."""
    return {name: value for name, value in example.items() if name not in ("image", "images")}


def images_of(example: Example) -> list[Any]:
    """The opened images of an example."""
    if example.get("image") is not None:
        return [example["image"]]
    return list(example.get("images") or ())


def _paths_of(example: Example) -> list[str]:
    """Where the images of an example come from; [] if it is not known."""
    if example.get("image_path") is not None:
        return [example["image_path"]]
    return list(example.get("image_paths") or ())
