"""Fewer launches: layers compiled by torch, and a decoding step captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, Final

import torch
from torch import Tensor

from stages.policy.determinism import deterministic_mode
from stages.policy.prompt_batch import backbone

WARM_UP: Final = 2
"""Runs before a capture: libraries allocate what they need in the first ones."""
_CAPTURE_MODE: Final = "thread_local"
ENTRIES: Final = 4096
"""Compiled versions of layers that are kept at most."""


def compile_layers(policy: Any) -> None:
    """Compile the blocks of the vision tower and the decoder layers, each at its first call.

    Not the last decoder layer, whose forward changes (`stages.policy.last_layer`).
    """
    import torch._dynamo

    # of all layers together: each has an entry per shape, with and without gradients
    torch._dynamo.config.accumulated_recompile_limit = ENTRIES
    model = backbone(policy)
    for layer in (*model.visual.blocks, *model.language_model.layers[:-1]):
        # layers share their code: without isolation they would share its few entries too
        layer.compile(isolate_recompiles=True)


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

    On a CPU it is simply called. A replay reads the addresses of the capture: tensors that the
    function uses besides its inputs must not be replaced, only written into.

    The function is given with each call and not kept: of the object that owns this one, it would be
    a reference cycle, and caches and graph would stay in memory until the next garbage collection.
    """

    def __init__(self) -> None:
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The result of the function, always the same one; valid until the next call."""
        if not inputs[0].is_cuda:
            return function(*inputs)
        if self._graph is None:
            self._capture(function, inputs)
        assert self._graph is not None
        assert self._output is not None
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output

    def _capture(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(each.clone() for each in inputs)
        stream, pool, _ = _capture_resources()
        stream.wait_stream(torch.cuda.current_stream())
        # Autocast's casts of weights that are trained were made by the pass over the prompts, and
        # live until the outermost autocast ends; those of frozen weights are part of each replay.
        # A deterministic algorithm would sort the columns of the cache that a step writes to: they
        # are distinct, so the plain kernel has one result.
        with torch.cuda.stream(stream), deterministic_mode(enabled=False):
            for _ in range(WARM_UP):
                function(*self._inputs)
            record = partial(_record, function, self._inputs, pool)
            recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
            with suppress(torch.OutOfMemoryError):
                recorded = record()
            if recorded is None:
                # a graph has memory of its own: what is cached for others must be given back first
                torch.cuda.empty_cache()
                recorded = record()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph, self._output = recorded


def _record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: Any
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of a function, and the tensor that its replays write to.

    `torch.cuda.graph` would first give all unused memory back to the device: tens of GB, in each
    rollout.
    """
    graph = torch.cuda.CUDAGraph()
    # other threads, such as the loader's, may allocate meanwhile
    graph.capture_begin(pool, capture_error_mode=_CAPTURE_MODE)
    try:
        output = function(*inputs)
    finally:
        graph.capture_end()
    return graph, output


@cache
def _capture_resources() -> tuple[torch.cuda.Stream, Any, torch.cuda.CUDAGraph]:
    """Stream and memory of all captures of this process, and a graph that keeps the memory.

    Each stream has a workspace of cuBLAS that is never freed. The memory of a graph that is gone is
    that of the next, as long as some graph has it: torch refuses memory that none has any more.
    """
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    keeper = torch.cuda.CUDAGraph()
    number = torch.zeros(1, device="cuda")
    with torch.cuda.graph(keeper, pool=pool, stream=stream, capture_error_mode=_CAPTURE_MODE):
        number.add_(1)
    return stream, pool, keeper
