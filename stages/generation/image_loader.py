"""Image loading for a policy: opened and preprocessed ahead of the GPU by threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from stages.core.iteration.prefetch import prefetch
from stages.corpus.dataset.image_store import open_image

_AHEAD: Final = 4
"""Images each thread may load ahead; a processed image of 384 x 384 takes a few MB."""


@dataclass(frozen=True)
class ProcessedImage:
    """Patches (N, features) and grid (3,) of an image, and its size in pixels, (width, height)."""

    patches: Tensor
    grid: Tensor
    size: tuple[int, int]


def process_image(processor: Any, image: Image.Image, dtype: torch.dtype) -> ProcessedImage:
    """Run the processor on one image."""
    fields = processor.image_processor(images=[image], return_tensors="pt")
    return ProcessedImage(fields["pixel_values"].to(dtype), fields["image_grid_thw"][0], image.size)


@contextmanager
def load_images(
    processor: Any, dtype: torch.dtype, paths: Sequence[str], threads: int
) -> Iterator[Iterator[ProcessedImage]]:
    """Yield an iterator over the images at some paths, in order.

    With `threads`, images are loaded a few ahead; with 0, each when the iterator reaches it. The
    iterator raises InputError naming an image that does not open.
    """

    def load(path: str) -> ProcessedImage:
        return process_image(processor, open_image(path), dtype)

    if not threads:
        yield map(load, paths)
        return
    with closing(prefetch(load, paths, threads=threads, budget=_AHEAD * threads + 1)) as images:
        yield images
