"""Rows answered together: a number that stands, or one that is halved when it does not fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from stages.errors import InputError
from stages.grpo.batch_size import MOST, ON_CPU, BatchSize, fitting_rows, row_bytes

QWEN2_VL_2B = SimpleNamespace(
    hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151_936
)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 ...")


def test_auto_is_halved_down_to_one_row_and_never_grows() -> None:
    size = BatchSize("auto", torch.device("cpu"))
    seen = [size.rows]
    while size.rows > 1:
        size.halve(FULL)
        seen.append(size.rows)
    assert seen == [ON_CPU, 32, 16, 8, 4, 2, 1]
    with pytest.raises(InputError, match=r"one answer at a time \(CUDA out of memory. .* 2.00 GiB.\): lower evaluate.max_new"):
        size.halve(FULL)


def test_a_number_that_was_given_is_never_changed() -> None:
    size = BatchSize(48, torch.device("cuda"))
    with pytest.raises(InputError, match=r"evaluate.batch_size 48 .*: lower it, or set it to auto. What was answered is kept"):
        size.halve(FULL)
    assert size.rows == 48


def test_the_first_estimate_for_a_gpu_follows_from_its_free_memory() -> None:
    one = row_bytes(QWEN2_VL_2B, 2, before=210, words=80, answer=10)
    # keys and values alone: 28 layers, 2 heads of 128, bfloat16, 300 tokens
    assert one > 2 * 28 * 2 * 128 * 2 * 300
    assert one < 60 * 2**20
    rows = [fitting_rows(free, one) for free in (one // 2, 2 * one, 16 * 2**30, 130 * 2**30)]
    assert rows == sorted(rows)
    assert rows[0] == rows[1] == 1
    assert rows[3] == MOST
    assert all(number & (number - 1) == 0 for number in rows)
    assert rows[2] * one < 16 * 2**30
    assert row_bytes(QWEN2_VL_2B, 2, before=210, words=80, answer=1024) > 2 * one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_it_is_estimated_once() -> None:
    size = BatchSize("auto", torch.device("cuda"))
    policy = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: QWEN2_VL_2B), dtype=torch.bfloat16)
    size.estimate(policy, 210, 80, 10)
    first = size.rows
    size.estimate(policy, 21_000, 80, 10)
    assert size.rows == first
