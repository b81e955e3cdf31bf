"""Tiny models to measure: in the benchmark's own setting, and in that of profile full."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.grpo_step.measure import Bench, Plan, bench
from benchmarks.grpo_step.setting import profile_setting

GROUP = 3
COMPLETION = 8


@pytest.fixture(scope="module")
def tiny() -> Iterator[Bench]:
    with bench(Plan("tiny", (GROUP,), (COMPLETION,), 1, 2, {})) as setup:
        yield setup


@pytest.fixture(scope="module")
def as_full() -> Iterator[Bench]:
    """The tiny model in the setting of profile full."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    setting = profile_setting("full", "tiny")
    plan = Plan("tiny", (4,), (COMPLETION,), 1, 2, {}, setting, drafted=True)
    with bench(plan) as setup:
        yield setup
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
