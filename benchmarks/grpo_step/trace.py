"""Kernels of a step on a GPU, by torch.profiler: their number and the time that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_COPIES: Final = ("Memcpy", "Memset")
"""Beginnings of the names of copies, which are no kernels."""


def trace(device: torch.device, work: Callable[[], None]) -> dict[str, float] | None:
    """Kernels and copies of some work, and the seconds that the GPU is busy; None on a CPU.

    The work takes longer than without the profiler: compare the seconds with those of another run.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    return sum_events(profiler.events() or [])


def sum_events(events: Iterable[Any]) -> dict[str, float]:
    """Number of `kernels` and of `copies`, and `gpu_seconds` of both, from a profiler's events."""
    on_gpu = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA
        # the span of a named range contains kernels that are counted themselves
        and not getattr(event, "is_user_annotation", False)
    ]
    copies = sum(event.name.startswith(_COPIES) for event in on_gpu)
    return {
        "kernels": len(on_gpu) - copies,
        "copies": copies,
        "gpu_seconds": sum(event.time_range.elapsed_us() for event in on_gpu) / 1e6,
    }
