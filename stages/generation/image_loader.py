"""Images as a policy takes them, opened and processed ahead of a GPU by threads."""

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
"""Images a thread may be ahead; one of 384 x 384 takes some MB."""


@dataclass(frozen=True)
class Processed:
    """An image's patches (N, features) and grid (3,), and its size in pixels, (width, height)."""

    patches: Tensor
    grid: Tensor
    size: tuple[int, int]


def process(processor: Any, image: Image.Image, dtype: torch.dtype) -> Processed:
    """What the processor makes of one image."""
    fields = processor.image_processor(images=[image], return_tensors="pt")
    return Processed(fields["pixel_values"].to(dtype), fields["image_grid_thw"][0], image.size)


@contextmanager
def load_images(
    processor: Any, dtype: torch.dtype, paths: Sequence[str], threads: int
) -> Iterator[Iterator[Processed]]:
    """Inside, the images at some paths, in order; each as it is asked for, or with threads a few
    ahead of that.

    Asking raises InputError naming an image that does not open.
    """

    def load(path: str) -> Processed:
        return process(processor, open_image(path), dtype)

    if not threads:
        yield map(load, paths)
        return
    with closing(prefetch(load, paths, threads=threads, budget=_AHEAD * threads + 1)) as images:
        yield images
