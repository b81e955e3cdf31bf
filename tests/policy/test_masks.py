"""Masks as numbers, in rows that kernels take as they are."""

from __future__ import annotations

import pytest
import torch

from stages.policy.masks import additive, aligned, include_diagonal


@pytest.mark.parametrize("shape", [(2, 1, 13, 13), (1, 1, 4, 24), (3, 5), (1, 1)])
def test_an_additive_mask_is_zero_where_true_and_its_rows_are_aligned(
    shape: tuple[int, ...],
) -> None:
    policy = torch.nn.Linear(1, 1)
    vars(policy)["dtype"] = torch.float32
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    numbers = additive(mask, policy)
    assert numbers.shape == mask.shape
    assert torch.equal(numbers == 0, mask)
    assert torch.equal(numbers == -torch.inf, ~mask)
    assert all(stride % 8 == 0 for stride in numbers.stride()[:-1])
    assert numbers.stride()[-1] == 1
    part = numbers[..., -1:, :]
    assert part.storage_offset() % 8 == 0, "a part of its rows is aligned too"


def test_selected_rows_are_aligned_anew() -> None:
    policy = torch.nn.Linear(1, 1)
    vars(policy)["dtype"] = torch.float32
    numbers = additive(torch.rand(4, 1, 3, 13) < 0.5, policy)
    rows = torch.tensor([3, 1])
    assert numbers[rows].stride()[2] == 13, "torch does not keep the gaps"
    kept = aligned(numbers[rows])
    assert torch.equal(kept, numbers[rows])
    assert all(stride % 8 == 0 for stride in kept.stride()[:-1])


def test_every_query_sees_itself() -> None:
    mask = include_diagonal(torch.zeros(2, 3, 3, dtype=torch.bool))
    assert torch.equal(mask, torch.eye(3, dtype=torch.bool).expand(2, 3, 3))
