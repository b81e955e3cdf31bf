"""The kernel benchmark counts fewer kernels with drafts and with a reference ahead."""

from __future__ import annotations

import pytest

from benchmarks.step_kernels import LINES, measure
from stages.grpo import engine


@pytest.mark.slow
def test_each_line_counts_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "draws", vars(engine)["draws"])  # restored afterwards
    rows = {row["name"]: row for row in measure(1, shallower=16)}
    assert list(rows) == [name for name, _ in LINES]
    kernels = {name: row["kernels"] for name, row in rows.items()}
    assert kernels["drafts"] < 0.7 * kernels["token by token"]
    assert kernels["images of one size together"] < kernels["drafts"]
    assert all(row["ms"] > 0 for row in rows.values())
