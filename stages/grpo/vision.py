"""Features of pictures by a vision tower that does not change: computed once, kept, shared."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from stages.grpo.prompt_batch import PromptBatch, backbone


class VisionFeatures:
    """A memory of at most `limit` bytes, oldest use dropped first, shared by policy, reference and epochs.

    Sound only while the tower is the same for all who ask: frozen in the policy, and in the reference always.
    Each picture goes through the tower alone, so that its features do not depend on what else is in the batch: a
    resumed run, which starts with an empty memory, gets the same bits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, policy: Any, prompts: PromptBatch) -> dict[str, Any]:
        """What the policy's forward takes in place of the pictures of these prompts."""
        patches = torch.split(prompts.pixel_values, prompts.image_grid_thw.prod(-1).tolist())
        features = [self._of(policy, each, grid) for each, grid in zip(patches, prompts.image_grid_thw, strict=True)]
        device = prompts.ids.device
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tuple(each.to(device) for each in features))}}

    def _of(self, policy: Any, patches: Tensor, grid: Tensor) -> Tensor:
        key = hashlib.blake2b(patches.cpu().float().numpy().tobytes() + str(grid.tolist()).encode(), digest_size=16).hexdigest()
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        (features,) = backbone(policy).get_image_features(patches, grid[None], return_dict=True).pooler_output
        features = features.cpu()
        self._features[key] = features
        self._held += features.nbytes
        while self._held > self._limit and len(self._features) > 1:
            self._held -= self._features.popitem(last=False)[1].nbytes
        return features
