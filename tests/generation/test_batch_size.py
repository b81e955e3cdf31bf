"""Batch size: estimated on a GPU, halved when it does not fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from benchmarks.grpo_step.models import SHAPES
from stages.core.errors import InputError
from stages.generation.batch_size import (
    CPU_ROWS,
    MAX_GPU_ROWS,
    BatchSize,
    fitting_rows,
    row_bytes,
)

GIB = 2**30
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")


def policy_of_2b() -> Any:
    config = AutoConfig.for_model("qwen2_vl", text_config=SHAPES["qwen2-vl-2b"].text)
    return SimpleNamespace(config=config, dtype=torch.bfloat16)


def set_memory(
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    share: float = 1.0,
    reserved: int = 0,
    allocated: int = 0,
) -> None:
    """A GPU of 141 GiB of which this process may use a share."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 141 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: share)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated)


def test_auto_is_a_constant_on_a_cpu_and_a_set_size_is_used_everywhere() -> None:
    assert BatchSize("auto", torch.device("cpu")).rows == CPU_ROWS
    for device in ("cpu", "cuda"):
        assert BatchSize(7, torch.device(device)).rows == 7


@pytest.mark.parametrize(
    ("free", "rows"),
    [(130 * GIB, MAX_GPU_ROWS), (20 * GIB, 512), (4 * GIB, 128), (GIB // 8, 4), (1, 1)],
)
def test_auto_on_a_gpu_starts_with_what_fits_its_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, rows: int
) -> None:
    set_memory(monkeypatch, free)
    size = BatchSize("auto", torch.device("cuda"))
    size.estimate(policy_of_2b(), prefix=211, suffix=85, answer=256)
    assert size.rows == rows
    size.rows = 2
    size.estimate(policy_of_2b(), prefix=211, suffix=85, answer=256)
    assert size.rows == 2, "estimated once"


@pytest.mark.parametrize(
    ("free", "share", "reserved", "allocated", "rows"),
    [
        # 141 / 12 = 11.75 GiB are its share, whatever is free
        (130 * GIB, 1 / 12, 0, 0, 256),
        (130 * GIB, 1 / 12, 10 * GIB, 10 * GIB, 32),
        # what it has reserved and not allocated is free for it
        (130 * GIB, 1 / 12, 10 * GIB, 0, 256),
        # another process has nearly all
        (GIB // 8, 1 / 2, 0, 0, 4),
        (0, 1 / 2, 4 * GIB, 0, 128),
        (130 * GIB, 1 / 2, 0, 0, 512),
    ],
)
def test_auto_sees_its_share_of_a_gpu_and_not_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    share: float,
    reserved: int,
    allocated: int,
    rows: int,
) -> None:
    set_memory(monkeypatch, free, share, reserved, allocated)
    size = BatchSize("auto", torch.device("cuda"))
    size.estimate(policy_of_2b(), prefix=211, suffix=85, answer=256)
    assert size.rows == rows


def test_a_row_takes_at_least_its_kv_cache_and_its_logits() -> None:
    config = policy_of_2b().config.get_text_config()
    by_hand = 2 * 28 * 2 * 128 * (211 + 85 + 256) * 2 + 4 * 4 * 151936
    assert by_hand < row_bytes(config, 2, 211, 85, 256) < 2 * by_hand
    assert fitting_rows(10 * by_hand, by_hand) == 8


def test_the_size_is_halved_down_to_one_and_then_the_remedy_is_named() -> None:
    size = BatchSize("auto", torch.device("cpu"))
    size.rows = 5
    for rows in (2, 1):
        size.halve(OUT_OF_MEMORY)
        assert size.rows == rows
    with pytest.raises(InputError, match=r"Tried to allocate 2 GiB\).*evaluate\.max_new_tokens"):
        size.halve(OUT_OF_MEMORY)
    with pytest.raises(InputError, match=r"evaluate\.batch_size 64 .* auto"):
        BatchSize(64, torch.device("cuda")).halve(OUT_OF_MEMORY)
