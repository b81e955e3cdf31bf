"""Features of images, computed apart from the rows they stand in: once, kept, shared."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.errors import InputError
from stages.policy.prefill import ImageInputs
from stages.policy.prompt_batch import PromptBatch, backbone


class VisionFeatures:
    """LRU cache of vision features, at most `limit` bytes, shared by policy, reference and epochs.

    Sound only while the tower is the same for all who ask: frozen in the policy, and in the
    reference always. Each image goes through the tower alone, so that its features do not depend on
    what else is in the batch: a resumed run, which starts with an empty memory, gets the same bits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, policy: Any, prompts: PromptBatch) -> ImageInputs:
        """What a forward of the policy takes in place of the pixels of these prompts."""
        patches = torch.split(prompts.pixel_values, prompts.image_grid_thw.prod(-1).tolist())
        features = [
            self._of(policy, each, grid)
            for each, grid in zip(patches, prompts.image_grid_thw, strict=True)
        ]
        return seen_as(policy, features)

    def _of(self, policy: Any, patches: Tensor, grid: Tensor) -> Tensor:
        key = hashlib.blake2b(
            patches.cpu().float().numpy().tobytes() + str(grid.tolist()).encode(), digest_size=16
        ).hexdigest()
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        (features,) = look(policy, patches, grid[None])
        features = features.cpu()
        self._features[key] = features
        self._held += features.nbytes
        while self._held > self._limit and len(self._features) > 1:
            self._held -= self._features.popitem(last=False)[1].nbytes
        return features


def embed_patches_by_product(policy: Any) -> None:
    """Replace the vision tower's patch convolution by an equivalent matrix product.

    A patch fills the kernel, so that both are the same sum; on a CPU the product is several times
    faster (27 and 5 ms for forward and backward of 784 patches).
    """
    convolution = backbone(policy).visual.patch_embed.proj
    convolution.forward = partial(_product, convolution)


def _product(convolution: nn.Conv3d, patches: Tensor) -> Tensor:
    embedded = functional.linear(
        patches.flatten(1), convolution.weight.flatten(1), convolution.bias
    )
    return embedded[:, :, None, None, None]


@torch.no_grad()
def look(policy: Any, patches: Tensor, grids: Tensor) -> Sequence[Tensor]:
    """The features (tokens, H) of each of some images, by the policy's vision tower.

    Raises InputError for a model whose tower feeds the language model's inner layers too
    (Qwen3-VL's deepstack): its features are more than what stands in the place of the image's
    tokens.
    """
    if not accepts_features(policy):
        raise InputError(
            f"{type(policy).__name__} cannot be given features of images: set grpo.vision_cache_mb"
            " to 0"
        )
    features: Sequence[Tensor] = (
        backbone(policy).get_image_features(patches, grids, return_dict=True).pooler_output
    )
    return features


def accepts_features(policy: Any) -> bool:
    """Whether features can replace image tokens.

    Not if the tower feeds inner layers (deepstack).
    """
    return not hasattr(backbone(policy).config.vision_config, "deepstack_visual_indexes")


def seen_as(policy: Any, features: Sequence[Tensor]) -> ImageInputs:
    """Rows in which the features of images stand in the places of their tokens, in order."""
    return partial(_embed, policy, features)


def _embed(policy: Any, features: Sequence[Tensor], ids: Tensor) -> dict[str, Any]:
    embedded = backbone(policy).get_input_embeddings()(ids)
    places = (ids == backbone(policy).config.image_token_id)[..., None].expand_as(embedded)
    return {
        "inputs_embeds": embedded.masked_scatter(places, torch.cat(list(features)).to(embedded))
    }
