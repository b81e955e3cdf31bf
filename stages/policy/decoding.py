"""Decoding: completions token by token, behind a filled KV cache.

One loop serves rollout and evaluation. They differ in how rows lie in the cache (`Decoder`) and in
how a token is chosen (`Sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

COMPACT_BELOW: Final = 0.5
"""Drop finished rows once at most this share of the batch is unfinished.

Dropping copies the cache of the remaining rows: all at once, this happens a few times only.
"""


class Decoder(Protocol):
    """R rows behind a KV cache, which takes one token of each at a time."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (R, V) after the newest tokens (R,) of completions of these lengths (R,)."""

    def keep(self, rows: Tensor) -> bool:
        """Continue with some of the rows (K,); False, and nothing changes, if that is no gain."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    `temperature` 0 is greedy; `eos_ids` end a completion, `pad` fills it up; `suppressed` tokens
    are never chosen; `repetition_penalty` as of transformers' `generate`.
    """

    max_tokens: int
    eos_ids: tuple[int, ...]
    pad: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    suppressed: tuple[int, ...] = ()
    repetition_penalty: float = 1.0

    def warpers(self, device: torch.device) -> LogitsProcessorList:
        """Logits processors of scores on a device, in the order of transformers' `generate`."""
        processors: list[LogitsProcessor] = []
        if self.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.suppressed:
            # its tokens would otherwise be copied to a GPU with each token that is sampled
            tokens = SuppressTokensLogitsProcessor(list(self.suppressed), device=str(device))
            processors.append(tokens)
        if self.temperature not in (0.0, 1.0):
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            processors.append(TopPLogitsWarper(self.top_p))
        return LogitsProcessorList(processors)

    def choose(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """Tokens (..., K) of scores (..., V) and draws (..., K); greedy, the likeliest each."""
        if self.temperature == 0:
            return scores.argmax(-1, keepdim=True).expand(uniform.shape)
        return _inverse_cdf(scores, uniform)

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Whether a completion of at least one token has ended."""
        return len(tokens) == self.max_tokens or tokens[-1] in self.eos_ids


def _inverse_cdf(scores: Tensor, uniform: Tensor) -> Tensor:
    """Inverse transform sampling: tokens (..., K) of logits (..., V) and draws (..., K).

    A token of probability 0 is never drawn.
    """
    cumulative = torch.softmax(scores, dim=-1).double().cumsum(-1)
    total = cumulative[..., -1:]
    # rounding could lift a draw to the total, which lies after the last token
    threshold = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold.contiguous(), right=True)


def decode(
    decoder: Decoder,
    completions: Sequence[Sequence[int]],
    prompt_ids: Tensor,
    uniform: Tensor,
    sampling: Sampling,
    *,
    compact_below: float = 0.0,
) -> tuple[list[list[int]], int]:
    """Continue R completions until all have ended.

    Args:
        decoder: The rows behind their cache.
        completions: Token ids of the R completions so far, at least one each.
        prompt_ids: (R, L), tokens of the prompts, for the repetition penalty; padded by repeating.
        uniform: (R, `max_tokens`), the draws; not used if greedy.
        sampling: How tokens are chosen.
        compact_below: See `COMPACT_BELOW`; 0 never drops a row before all have finished.

    Returns the completions, end token included, and the number of forward passes.
    """
    device = uniform.device
    begun = [len(each) for each in completions]
    is_open = [not sampling.is_complete(each) for each in completions]
    steps = max(
        (sampling.max_tokens - length for length, more in zip(begun, is_open, strict=True) if more),
        default=0,
    )
    # one row per completion; `rows`, `lengths` and `unfinished` are those still in the batch
    tokens = torch.tensor(
        [
            [*each, *[sampling.pad] * (sampling.max_tokens - len(each))]
            for each in map(list, completions)
        ],
        device=device,
    )
    rows = torch.arange(len(tokens), device=device)
    lengths = torch.tensor(begun, device=device)
    unfinished = torch.tensor(is_open, device=device)
    eos_ids = torch.tensor(sampling.eos_ids, dtype=torch.long, device=device)
    warpers = sampling.warpers(device)
    count_unfinished = _Counter(late=device.type == "cuda")
    for step in range(steps):
        logits = decoder.forward(tokens[rows, lengths - 1], lengths)
        written = prompt_ids
        # only the penalty reads them; where it is used all completions have one length
        if sampling.repetition_penalty != 1.0:
            written = torch.cat([prompt_ids[rows], tokens[rows, : begun[0] + step]], dim=1)
        at = lengths.clamp(max=sampling.max_tokens - 1)
        scores = warpers(written, logits.float())
        chosen = sampling.choose(scores, uniform[rows, at, None])[:, 0]
        tokens[rows, at] = torch.where(unfinished, chosen, tokens[rows, at])
        lengths = torch.where(unfinished, lengths + 1, lengths)
        unfinished &= ~torch.isin(chosen, eos_ids) & (lengths < sampling.max_tokens)
        remaining = count_unfinished(unfinished)
        if not remaining:
            return _until_end(tokens, sampling.eos_ids), step + 1
        if remaining <= compact_below * len(rows):
            selected = unfinished.nonzero()[:, 0]
            if not len(selected):  # the last ended in this step, which the count does not know yet
                return _until_end(tokens, sampling.eos_ids), step + 1
            if decoder.keep(selected):
                rows, lengths, unfinished = rows[selected], lengths[selected], unfinished[selected]
    return _until_end(tokens, sampling.eos_ids), steps


class _Counter:
    """Counts true elements, `late`: returns the count of the call before, at first all elements.

    So the host does not wait for a GPU at each token, at the price of one step more at the end.
    """

    def __init__(self, *, late: bool) -> None:
        self._late = late
        self._previous: tuple[Tensor, torch.cuda.Event | None] | None = None

    def __call__(self, flags: Tensor) -> int:
        count = flags.sum()
        if not self._late:
            return int(count)
        copied = torch.cuda.Event() if count.is_cuda else None
        previous, self._previous = self._previous, (count.to("cpu", non_blocking=True), copied)
        if copied is not None:
            copied.record()
        if previous is None:
            return len(flags)
        if previous[1] is not None:
            previous[1].synchronize()
        return int(previous[0])


def _until_end(tokens: Tensor, eos_ids: Sequence[int]) -> list[list[int]]:
    """Rows as lists, each up to its first end token, that included."""
    completions: list[list[int]] = []
    for row in tokens.tolist():
        end = next((place for place, token in enumerate(row) if token in eos_ids), len(row))
        completions.append(row[: end + 1])
    return completions
