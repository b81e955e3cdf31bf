"""Seconds by part, and peak memory, of a step."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

import torch

PARTS: Final = (
    "images",
    "processor",
    "rollout",
    "policy forward",
    "backward",
    "reference",
    "optimizer",
    "other",
)
"""Parts of a step. `images`: opening their files, if a step does; `other`: rewards, advantages, the
loss itself, padding, metrics.
"""


class Clock:
    """Seconds by part; time in nested parts counts for the inner one, so parts add up.

    `by_part` false: all time counts as `other`. On a GPU this is how long a step takes, as the end
    of a part waits for its kernels.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.by_part = True
        self._running = ["other"]
        self.reset()

    def reset(self) -> None:
        """Restart from zero."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = self._now()

    @property
    def running(self) -> str:
        """The part whose time is counted now."""
        return self._running[-1]

    def stop(self) -> dict[str, float]:
        """Seconds of each part since the last reset (0 if it did not run), and of `step`."""
        self._charge()
        seconds = {part: self.seconds[part] for part in PARTS}
        return {"step": sum(seconds.values())} | seconds

    def parts(self) -> dict[str, float]:
        """Seconds of the parts that ran since the last reset; 0 for any other name."""
        self._charge()
        return defaultdict(float, self.seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block as `name`."""
        if not self.by_part:
            yield
            return
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts as `name`."""

        @wraps(function)
        def run(*arguments: Any, **more: Any) -> Any:
            with self.part(name):
                return function(*arguments, **more)

        return run

    def _charge(self) -> None:
        """Add the time since the last call to the running part."""
        now = self._now()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        if self._device.type == "cuda":  # kernels run asynchronously
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class PeakMemory:
    """Context manager that measures peak memory in bytes: `total`, and `above_start` of the block.

    On a GPU that of torch's allocator; on a CPU the process's resident memory, sampled 100 times a
    second. Weights, reference and optimiser state are allocated before, the same for all three
    implementations.
    """

    above_start = total = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> PeakMemory:
        """Start measuring."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return self
        _return_freed_memory()
        self._start = self.total = resident()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and compute the peak."""
        if self._device.type == "cuda":
            self.total = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._watcher.join()
        self.above_start = self.total - self._start

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.total = max(self.total, resident())


def bytes_outside_allocator(device: torch.device) -> int:
    """Bytes in use on a GPU that torch has not reserved: CUDA, its libraries, other processes.

    0 on a CPU, where the process's resident memory has all.
    """
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _return_freed_memory() -> None:
    """Return freed memory to the system: glibc would reuse it without resident memory growing."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)
