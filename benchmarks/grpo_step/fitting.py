"""Work that may not fit into the memory of a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def attempt(work: Callable[[], Result]) -> Result | None:
    """The result of some work; None if the GPU's memory does not suffice, which is freed again."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        # the frames of its traceback hold the tensors that took the memory
        del error
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
