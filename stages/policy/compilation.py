"""Fewer launches: layers compiled by torch, and a decoding step captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from stages.policy.prompt_batch import backbone

WARM_UP: Final = 2
"""Runs before a capture: libraries allocate what they need in the first ones."""


def compile_layers(policy: Any) -> None:
    """Compile the blocks of the vision tower and the decoder layers, each at its first call.

    Not the last decoder layer, whose forward changes (`stages.policy.last_layer`).
    """
    model = backbone(policy)
    for layer in (*model.visual.blocks, *model.language_model.layers[:-1]):
        layer.compile()


@contextmanager
def uncompiled(policy_is_compiled: bool) -> Iterator[None]:
    """Inside, compiled layers run as they were: where each call would have another shape."""
    if not policy_is_compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class CapturedStep:
    """A function of tensors whose shapes do not change: on a GPU captured once, then replayed.

    Elsewhere it is called. What it reads besides its inputs must stay where it is in memory.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, valid until the next call."""
        if not inputs[0].is_cuda:
            return self._function(*inputs)
        if self._graph is None:
            self._capture(inputs)
        assert self._graph is not None
        assert self._output is not None
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(each.clone() for each in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # casts of weights that autocast keeps would belong to the graph's memory
        kind = inputs[0].device.type
        autocast = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        with autocast:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = self._function(*self._inputs)
