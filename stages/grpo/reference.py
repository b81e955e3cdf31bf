"""Reference log-probabilities of drafts, for the prompts of several steps in one pass.

The reference does not change, and what it thinks of a drafted completion does not depend on what is
sampled. So one pass over the prompts of the next steps, with the trie of drafts behind each, gives
the log-probabilities of all completions that the trie has; the others get a pass of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.grpo.batch import ExampleBatch
from stages.grpo.drafts import DraftTrie, nodes_before, prefill_with_drafts
from stages.policy.prefill import ImageInputs
from stages.policy.prompt_batch import PromptBatch, concatenate_prompts


@dataclass(frozen=True)
class ReferenceTable:
    """What a reference thinks of the tokens after each of N nodes, for B prompts.

    `tokens`: (U,), sorted, those that a completion of drafts consists of; `logps`: (B, N + 1, U).
    """

    trie: DraftTrie
    tokens: Tensor
    logps: Tensor

    def score(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[int]]:
        """Log-probabilities (B, G, C) of completions (B, G, C), and the prompts it cannot score.

        Those are prompts with a completion that leaves the trie, or ends with another token.
        """
        batch, group, length = ids.shape
        paths = nodes_before(self.trie, ids, mask)
        column = torch.searchsorted(self.tokens, ids.contiguous()).clamp(
            max=len(self.tokens) - 1
        )  # (B, G, C)
        known = (self.tokens[column] == ids) | ~mask.bool()
        missing = [
            row
            for row, is_known in enumerate(known.flatten(1).all(1).tolist())
            if not is_known or None in paths[row * group : (row + 1) * group]
        ]
        nodes = torch.tensor([path or [0] * length for path in paths], device=ids.device)
        rows = torch.arange(batch, device=ids.device)[:, None, None]
        return self.logps[rows, nodes.view(ids.shape), column], missing


class ReferenceAhead:
    """Reference tables of the batches to come: computed for up to `batches` of them at once."""

    def __init__(self, batches: int, end_tokens: Sequence[int]) -> None:
        """`end_tokens`: those that end a completion."""
        self._batches = batches
        self._end_tokens = tuple(end_tokens)
        self._source: Iterator[ExampleBatch] | None = None
        self._upcoming: deque[ExampleBatch] = deque()
        self._handed_out = 0
        self.tables: deque[ReferenceTable] = deque()
        """Of the next batches, in order: all of its state."""

    def watch(self, batches: Iterator[ExampleBatch]) -> Iterator[ExampleBatch]:
        """Take over the iterator of an epoch; returns this object, which hands out its batches.

        Called with the same iterator each time; another one starts a new epoch.
        """
        if batches is not self._source:  # another epoch
            self._source = batches
            self._upcoming.clear()
            self._handed_out = 0
        return self

    def __iter__(self) -> Iterator[ExampleBatch]:
        """Of the batches watched."""
        return self

    def __next__(self) -> ExampleBatch:
        """The next batch, of which `table` will be asked in the same order."""
        self._load(self._handed_out + 1)
        if self._handed_out == len(self._upcoming):
            raise StopIteration
        self._handed_out += 1
        return self._upcoming[self._handed_out - 1]

    def table(
        self,
        reference: nn.Module,
        prompts: PromptBatch,
        trie: DraftTrie,
        temperature: float,
        image_inputs: Any,
    ) -> ReferenceTable | None:
        """The table of the first batch that was handed out and has had none; that is then done.

        `prompts` are the batch's; `image_inputs(reference, prompts)` their images. None if there is
        nothing to be had from a table: no trie, or a batch that does not come from here.
        """
        if not self._handed_out or self._upcoming[0].prompts is not prompts:
            return None
        if not self.tables and len(trie):
            self._load(self._batches)
            ahead = [each.prompts for each in list(self._upcoming)[: self._batches]]
            together = concatenate_prompts(ahead)
            inputs: ImageInputs = image_inputs(reference, together)
            table = build_table(reference, together, trie, self._end_tokens, temperature, inputs)
            for logps in table.logps.split([len(each) for each in ahead]):
                self.tables.append(ReferenceTable(trie, table.tokens, logps))
        self._upcoming.popleft()
        self._handed_out -= 1
        return self.tables.popleft() if self.tables else None

    def _load(self, count: int) -> None:
        """Have so many batches that are not done, if there are."""
        while self._source is not None and len(self._upcoming) < count:
            following = next(self._source, None)
            if following is None:
                return
            self._upcoming.append(following)


@torch.no_grad()
def build_table(
    reference: nn.Module,
    prompts: PromptBatch,
    trie: DraftTrie,
    end_tokens: Sequence[int],
    temperature: float,
    image_inputs: ImageInputs,
) -> ReferenceTable:
    """The table of B prompts, from one pass of the reference."""
    draft_pass = prefill_with_drafts(reference, prompts, image_inputs, trie)
    tokens = torch.tensor(sorted({*trie.tokens, *end_tokens}), device=prompts.ids.device)
    logps = []
    for logits in draft_pass.logits:  # (N + 1, V) of a prompt: those of all, in 32 bits, are large
        scaled = logits.float() / temperature
        logps.append(scaled[:, tokens] - scaled.logsumexp(-1, keepdim=True))
    return ReferenceTable(trie, tokens, torch.stack(logps))
