"""Images that questions of a corpus show the model, and what a prompt with several takes."""

from __future__ import annotations

from typing import Final, NamedTuple

from stages.core.params import Volume
from stages.profiles.schema import Model, Scale

TEXT_TOKENS: Final = 80
"""Measured: tokens of a prompt that are no image's, 77 to 81 without thoughts or a context."""
PICTURE_TOKENS: Final = 7
"""Counted: tokens of each further image that are not its patches', "Picture 2: " and two marks."""
_SAVED_TOKENS: Final = TEXT_TOKENS - PICTURE_TOKENS
"""Tokens by which a further image takes less than a prompt of its own."""


class Images(NamedTuple):
    """Images that a question shows, on average over all questions, and at most."""

    mean: float
    most: int


ONE: Final = Images(1.0, 1)


def images_per_question(scale: Scale, frames: int = 1, limit: int = 16) -> Images:
    """Images of a question: `frames` of a volume, and `limit` in all (`volume.max_images`)."""
    mean = (1 - scale.volume_share) * scale.images_per_question + scale.volume_share * frames
    most = max(scale.most_images_per_question, frames if scale.volume_share else 1)
    most = min(most, limit)
    return Images(min(mean, most), most)


def frames_of(volume: Volume) -> int:
    """Images that a question shows of a volume, at most."""
    return volume.max_images if volume.selection == "all" else volume.frames


def shapes_of(scale: Scale, volume: Volume) -> list[tuple[float, float]]:
    """(share of all questions, images of each): about one image, several of them, or a volume.

    Shares above 0, which sum to 1. No question shows more than `volume.max_images`.
    """
    others = 1 - scale.volume_share
    several = scale.several_share
    if several is None:  # as if they had two each, or more if all have several
        several = min(scale.images_per_question - 1, 1.0)
    further = (scale.images_per_question - 1) / several if several else 0.0
    shapes = [
        (others * (1 - several), 1.0),
        (others * several, 1 + further),
        (scale.volume_share, float(frames_of(volume))),
    ]
    return [(share, min(images, volume.max_images)) for share, images in shapes if share > 0]


def prompt_flops(model: Model, images: float) -> float:
    """FLOPs of a forward pass over a prompt with so many images.

    Attention between images is left out: the count is 3% too low for 8 images of Qwen2-VL-2B, 5%
    for 16 and 14% for 64. So are the tokens of a context.
    """
    first = model.prompt_tflop * 1e12
    return first + (images - 1) * (first - _SAVED_TOKENS * model.token_gflop * 1e9)


def prompt_activations(model: Model, images: float) -> float:
    """10^6 bytes that such a pass stores for the backward pass."""
    further = model.prompt_mb - _SAVED_TOKENS * model.token_mb
    return model.prompt_mb + (images - 1) * further
