"""Where the seconds and the memory of a step go."""

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
    "processor",
    "rollout",
    "policy forward",
    "backward",
    "reference",
    "optimizer",
    "other",
)
"""Of a step. `other` is what no part claims: rewards, advantages, the loss itself, padding,
metrics.
"""


class Clock:
    """Seconds by part.

    Where parts nest, the inner one alone counts, so that the parts add up to the step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._running = ["other"]
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = self._now()

    def stop(self) -> dict[str, float]:
        """Seconds of each part since the last reset (0 if it did not run), and of `step`."""
        self._turn()
        seconds = {part: self.seconds[part] for part in PARTS}
        return {"step": sum(seconds.values())} | seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as `name`."""
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted as `name`."""

        @wraps(function)
        def run(*arguments: Any, **more: Any) -> Any:
            with self.part(name):
                return function(*arguments, **more)

        return run

    def _turn(self) -> None:
        now = self._now()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        if self._device.type == "cuda":  # kernels run on after the call that starts them
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class PeakMemory:
    """Context manager that measures a step's memory: `above_start` and `total` bytes at the peak.

    `above_start` is relative to what was allocated on entry.

    On a GPU that of torch's allocator; elsewhere the process's resident memory, looked at a hundred
    times a second. Weights, reference and optimiser state are there before and the same for all
    three.
    """

    above_start = total = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> PeakMemory:
        """Start to look."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return self
        _give_back_freed_memory()
        self._start = self.total = resident()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and work the peak out."""
        if self._device.type == "cuda":
            self.total = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._watcher.join()
        self.above_start = self.total - self._start

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.total = max(self.total, resident())


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back_freed_memory() -> None:
    """What the last step freed would otherwise be used again unseen (glibc keeps it)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)
