"""Image features computed by the vision tower apart from the language model, and cached."""

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
    """LRU cache of image features, shared by policy, reference and epochs.

    Valid only while all users have the same vision tower: frozen in the policy, as it always is in
    the reference. Each image goes through the tower alone, so its features do not depend on the
    rest of the batch: a resumed run, which starts with an empty cache, gets the same bits.
    """

    def __init__(self, limit: int) -> None:
        """Cache at most `limit` bytes, and the last image whatever its size."""
        self._limit = limit
        self._bytes = 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def inputs_for(self, policy: Any, prompts: PromptBatch) -> ImageInputs:
        """As `prompts.image_inputs`, with cached features in place of pixels."""
        patches = torch.split(prompts.pixel_values, prompts.image_grid_thw.prod(-1).tolist())
        paths = prompts.image_paths or (None,) * len(patches)
        features = [
            self._features_of(policy, each, grid, path)
            for each, grid, path in zip(patches, prompts.image_grid_thw, paths, strict=True)
        ]
        return partial(_with_features, policy, features)

    def _features_of(self, policy: Any, patches: Tensor, grid: Tensor, path: str | None) -> Tensor:
        """Features (tokens, H), on the CPU, of the patches (N, features) of one image.

        `path` is the image's, or None if it is not known: then its patches are hashed, which copies
        them from the GPU.
        """
        key = (
            path
            or hashlib.blake2b(
                patches.cpu().float().numpy().tobytes() + str(grid.tolist()).encode(),
                digest_size=16,
            ).hexdigest()
        )
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        features = _compute_features(policy, patches, grid[None]).cpu()
        self._features[key] = features
        self._bytes += features.nbytes
        while self._bytes > self._limit and len(self._features) > 1:
            _, oldest = self._features.popitem(last=False)
            self._bytes -= oldest.nbytes
        return features


def embed_patches_by_product(policy: Any) -> None:
    """Replace the vision tower's patch convolution by an equivalent matrix product.

    A patch fills the kernel, so both are the same sum; on a CPU the product is several times faster
    (5 instead of 27 ms for forward and backward of 784 patches).
    """
    convolution = backbone(policy).visual.patch_embed.proj
    convolution.forward = partial(_product, convolution)


def _product(convolution: nn.Conv3d, patches: Tensor) -> Tensor:
    """(N, channels, T, H, W) -> (N, width, 1, 1, 1), as the convolution returns it."""
    embedded = functional.linear(
        patches.flatten(1), convolution.weight.flatten(1), convolution.bias
    )
    return embedded[:, :, None, None, None]


@torch.no_grad()
def _compute_features(policy: Any, patches: Tensor, grid: Tensor) -> Tensor:
    """Features (tokens, H) of the one image of a grid (1, 3), by the policy's vision tower.

    Raises InputError for a model whose tower feeds inner layers of the language model too
    (Qwen3-VL's deepstack): its features are more than the embeddings of the image's tokens.
    """
    if hasattr(backbone(policy).config.vision_config, "deepstack_visual_indexes"):
        raise InputError(
            f"{type(policy).__name__} does not accept precomputed image features: set"
            " grpo.vision_cache_mb to 0"
        )
    outputs = backbone(policy).get_image_features(patches, grid, return_dict=True)
    (features,) = outputs.pooler_output
    return features


def _with_features(policy: Any, features: Sequence[Tensor], ids: Tensor) -> dict[str, Any]:
    """Embeddings (B, T, H) of rows, with features in place of their image tokens, in order."""
    embedded = backbone(policy).get_input_embeddings()(ids)
    is_image = (ids == backbone(policy).config.image_token_id)[..., None].expand_as(embedded)
    return {
        "inputs_embeds": embedded.masked_scatter(is_image, torch.cat(list(features)).to(embedded))
    }
