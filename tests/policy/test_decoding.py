"""The decoding loop, on rows whose completions end where the test says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from stages.policy import decoding
from stages.policy.decoding import Sampling, decode

VOCABULARY = 5
WORD, END = 1, 4


class Rows:
    """A `Decoder` whose row r ends after `lengths[r]` tokens."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = torch.tensor(lengths)
        self.passes = 0
        self.kept: list[int] = []

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits of an end token in rows of full length, else of a word."""
        assert len(tokens) == len(lengths) == len(self._lengths)
        self.passes += 1
        logits = torch.zeros(len(tokens), VOCABULARY)
        logits[:, WORD] = 1
        logits[lengths >= self._lengths - 1, END] = 2
        return logits

    def keep(self, rows: Tensor) -> bool:
        """Drop the other rows."""
        assert len(rows), "a pass over no rows fails"
        self._lengths = self._lengths[rows]
        self.kept.append(len(rows))
        return True


def greedy(rows: Rows, count: int, limit: int = 12) -> list[list[int]]:
    sampling = Sampling(max_tokens=limit, eos_ids=(END,), pad=0, temperature=0.0)
    uniform = torch.zeros(count, limit)
    prompts = torch.zeros(count, 3, dtype=torch.long)
    begun = [[WORD]] * count
    completions, passes = decode(rows, begun, prompts, uniform, sampling, compact_below=0.5)
    assert passes == rows.passes
    return completions


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([3, 3, 3, 4], id="the last one token after most"),
        pytest.param([3, 3, 3, 3], id="all at once"),
        pytest.param([2, 5, 9, 11], id="one after the other"),
        pytest.param([2, 2, 9, 10], id="half, then the rest"),
        pytest.param([12, 12, 2, 2], id="at the limit"),
        pytest.param([20, 2, 2, 2], id="one never ends"),
    ],
)
def test_a_count_that_comes_late_changes_no_completion_and_never_leaves_no_row(
    lengths: list[int], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the number of unfinished rows is that of the step before."""
    counter = decoding._Counter
    monkeypatch.setattr(decoding, "_Counter", lambda **_: counter(late=late))
    rows = Rows(lengths)
    completions = greedy(rows, len(lengths))
    for length, completion in zip(lengths, completions, strict=True):
        assert completion == ([WORD] * (length - 1) + [END])[:12]
    at_once = min(max(lengths), 12) - 1
    assert at_once <= rows.passes <= at_once + late


def test_suppressed_tokens_are_on_the_device_of_the_scores() -> None:
    sampling = Sampling(max_tokens=1, eos_ids=(END,), pad=0, suppressed=(2, 3))
    (suppress,) = sampling.warpers(torch.device("meta"))
    assert suppress.suppress_tokens.device.type == "meta"
