"""The matrix-product rate, measured here and in a process of its own."""

from __future__ import annotations

import pytest
import torch

from stages.core.distributed.matrix_product import (
    MatrixProductRate,
    measure_in_subprocess,
    measure_rate,
)


def test_the_rate_is_that_of_one_thread_and_changes_no_setting() -> None:
    threads = torch.get_num_threads()
    rate = measure_rate("cpu", 1)
    assert (rate.size, rate.dtype, rate.device, rate.threads) == (1024, "float32", "cpu", 1)
    # from 1 GFLOP/s, slower than any processor, to 10 TFLOP/s, faster than any core
    assert 1e9 < rate.flops_per_second < 1e13
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_process_without_torch_measures_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rate = measure_in_subprocess(1)
    assert rate is not None
    assert (rate.size, rate.dtype, rate.device, rate.threads) == (1024, "float32", "cpu", 1)
    assert 1e9 < rate.flops_per_second < 1e13


def test_a_rate_that_cannot_be_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")
    assert measure_in_subprocess(1) is None


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (
            MatrixProductRate(6.54e10, 1024, "float32", "cpu", 1),
            "0.0654 TFLOP/s (1024 x 1024 float32 product on cpu, 1 thread)",
        ),
        (
            MatrixProductRate(7.0e14, 8192, "bfloat16", "cuda", 2),
            "700 TFLOP/s (8192 x 8192 bfloat16 product on cuda)",
        ),
    ],
)
def test_a_rate_is_shown_with_how_it_was_measured(rate: MatrixProductRate, text: str) -> None:
    assert str(rate) == text
