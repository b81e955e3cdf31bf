"""The kernel benchmark counts fewer kernels with drafts and with a reference ahead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.step_kernels import LINES, PARTS, measure, show


@pytest.fixture
def restored() -> Iterator[None]:
    """Threads and determinism as before."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.slow
@pytest.mark.usefixtures("restored")
def test_each_line_counts_its_kernels_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in measure(1, shallower=16, bf16=False)}
    assert list(rows) == [name for name, _ in LINES]
    kernels = {name: row["kernels"] for name, row in rows.items()}
    assert kernels["drafts"] < 0.7 * kernels["token by token"]
    assert kernels["images of one size together"] < kernels["drafts"]
    assert all(row["ms"] > 0 for row in rows.values())
    for row in rows.values():
        assert list(row["parts"]) == list(PARTS)
        for key in ("kernels", "ms"):
            assert sum(part[key] for part in row["parts"].values()) == pytest.approx(
                row[key], rel=1e-6
            )
    parts = {name: row["parts"] for name, row in rows.items()}
    # what drafts foresee is neither sampled nor scored in passes of its own
    assert parts["token by token"]["completions"]["kernels"] > 0
    assert parts["token by token"]["sampling"]["kernels"] > 500
    assert parts["drafts"]["completions"]["kernels"] < 100
    # the draws alone, whatever the depth
    assert parts["drafts"]["sampling"]["kernels"] < 200
    # without workers it loads the images of the steps ahead, too
    ahead = parts["images by workers"]["reference"]["kernels"]
    assert ahead < parts["drafts"]["reference"]["kernels"] / 2
    show(list(rows.values()))
    assert "prompt pass" in capsys.readouterr().out
