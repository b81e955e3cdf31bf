"""Rollout: sampling a group of completions from one pass over its prompt.

Completions begin with tokens that were drafted in the prompt's own pass (`stages.grpo.drafts`), as
far as the draws pick them. The rest of the G completions of a prompt is decoded side by side in one
row: each step feeds G tokens, one per completion, and a mask lets each attend to the prompt and to
its own past. So the prompt's keys and values are in memory once, not G times. Random numbers belong
to a prompt and a completion, not to a call: the same seed gives the same completions however many
prompts share a call, on one process or several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from stages.grpo.drafts import DraftPass, without_drafts
from stages.policy.compilation import CapturedStep
from stages.policy.decoding import Sampling, decode
from stages.policy.kv_cache import FixedWidthLayer, PreallocatedLayer
from stages.policy.masks import additive, aligned
from stages.policy.prefill import PromptPass
from stages.policy.prompt_batch import PromptBatch


def draws(seed: int, prompt_numbers: Sequence[int], group_size: int, tokens: int) -> Tensor:
    """Uniform numbers in [0, 1), (B, G, tokens), float64.

    Row b depends on `seed` and `prompt_numbers[b]` alone.
    """
    uniform = []
    for number in prompt_numbers:
        bits = np.random.Philox(np.random.SeedSequence([seed, number]))
        uniform.append(np.random.Generator(bits).random((group_size, tokens)))
    return torch.from_numpy(np.stack(uniform))


@dataclass(frozen=True)
class Sampled:
    """Completions of B * G rows, end token included, and what they took.

    `drafted`: completions whose tokens but the last were all in the trie, one that ends at once
    among them; `forwards`: forward passes of single tokens.
    """

    completions: list[list[int]]
    drafted: int = 0
    forwards: int = 0


def sample_completions(
    policy: nn.Module,
    prompts: PromptBatch,
    prompt_pass: PromptPass,
    uniform: Tensor,
    sampling: Sampling,
) -> list[list[int]]:
    """Sample B * G completions of B prompts step by step: lists of token ids.

    `prompt_pass` is the policy's pass over the prompts, without gradients; `uniform`
    (B, G, max_tokens) are the draws.
    """
    draft_pass = without_drafts(prompt_pass)
    return sample_drafted(policy, prompts, draft_pass, uniform, sampling).completions


@torch.no_grad()
def sample_drafted(
    policy: nn.Module,
    prompts: PromptBatch,
    draft_pass: DraftPass,
    uniform: Tensor,
    sampling: Sampling,
    *,
    fixed_width: bool = False,
) -> Sampled:
    """Sample B * G completions from a pass over B prompts with drafts, and step by step behind it.

    `draft_pass` is without gradients; `uniform` (B, G, max_tokens) are the draws. `fixed_width`: a
    step attends to the columns of all steps, those to come masked, so that on a GPU it is captured
    once and replayed.
    """
    group = uniform.shape[1]
    uniform = uniform.to(prompts.ids.device)
    written, path = _follow_drafts(prompts, draft_pass, uniform, sampling)
    rows = list(chain.from_iterable(written))
    unfinished = [each for each in rows if not sampling.is_complete(each)]
    drafted = len(rows) - len(unfinished)
    if not unfinished:
        return Sampled(rows, drafted)
    steps = sampling.max_tokens - min(map(len, unfinished))
    decoder = PackedRows(policy, prompts, draft_pass, path, group, steps, fixed_width=fixed_width)
    prompt_ids = prompts.ids.repeat_interleave(group, 0)
    completions, forwards = decode(decoder, rows, prompt_ids, uniform.flatten(0, 1), sampling)
    return Sampled(completions, drafted, forwards)


def _follow_drafts(
    prompts: PromptBatch, draft_pass: DraftPass, uniform: Tensor, sampling: Sampling
) -> tuple[list[list[list[int]]], Tensor]:
    """Draw tokens as long as they are in the trie, and the first one that is not.

    Returns the tokens of each completion, and (B, G, N), the nodes that it went through.
    """
    batch, group, max_tokens = uniform.shape
    trie = draft_pass.trie
    nodes = len(trie) + 1
    warpers = sampling.warpers(uniform.device)
    scores = warpers(
        prompts.ids.repeat_interleave(nodes, 0), draft_pass.logits.flatten(0, 1).float()
    ).view(batch, nodes, -1)
    depths = trie.depths
    drawn_at = torch.tensor(depths, device=uniform.device).clamp(max=max_tokens - 1)
    # (B, N + 1, G): what each completion draws at each node
    chosen = sampling.choose(scores, uniform[:, :, drawn_at].transpose(1, 2)).tolist()
    children = trie.children
    path = torch.zeros(batch, group, len(trie), dtype=torch.bool)
    written: list[list[list[int]]] = []
    for row in range(batch):
        written.append([])
        for member in range(group):
            tokens: list[int] = []
            node: int | None = 0
            while node is not None:
                if node:
                    path[row, member, node - 1] = True
                tokens.append(chosen[row][node][member])
                node = None if sampling.is_complete(tokens) else children[node].get(tokens[-1])
            written[-1].append(tokens)
    return written, path


class PackedRows:
    """The `Decoder` (stages.policy.decoding) of B * G completions, G in each of B rows of a cache.

    Each attends to the prompt, which they share, to its nodes of the trie, and to itself.
    """

    def __init__(
        self,
        policy: nn.Module,
        prompts: PromptBatch,
        draft_pass: DraftPass,
        path: Tensor,
        group: int,
        steps: int,
        *,
        fixed_width: bool,
    ) -> None:
        """`path`: (B, G, N), the nodes of the trie that are part of a completion.

        `fixed_width`: see `sample_drafted`.
        """
        device = prompts.ids.device
        batch, self._width = len(prompts), prompts.ids.shape[1] + path.shape[2]
        self._policy = policy
        self._shape = (batch, group)
        # columns of the cache: the prompt, the trie, then per step one token of each completion
        owner = torch.arange(group * steps, device=device) % group
        is_own = torch.arange(group, device=device)[:, None] == owner  # (G, G * steps)
        sees_prompt = prompts.mask.bool()[:, None, :].expand(-1, group, -1)
        parts = [sees_prompt, path.to(device), is_own.expand(batch, group, -1)]
        mask = torch.cat(parts, dim=2)[:, None]  # (B, 1, G, P + N + G * steps)
        self._mask = additive(mask, policy)
        layer_type = FixedWidthLayer if fixed_width else PreallocatedLayer
        # under autocast keys are float32, which attention would round at every token
        dtype = self._mask.dtype
        self._cache = DynamicCache()
        self._cache.layers = [
            layer_type.from_prefix(keys.to(dtype), values.to(dtype), group * steps)
            for keys, values in draft_pass.keys_values
        ]
        self._last = prompts.positions[:, :, -1:]  # (3, B, 1)
        self._column = torch.arange(mask.shape[-1], device=device)
        self._step = CapturedStep() if fixed_width else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B * G, V) after the newest tokens (B * G,) of completions of these lengths."""
        tokens = tokens.view(self._shape)
        positions = self._last + lengths.view(self._shape)
        columns = self._column[self._width : self._width + self._shape[1]]
        self._width += self._shape[1]
        if self._step is not None:
            return self._step(self._forward_fixed, tokens, positions, columns)
        return self._forward(tokens, positions, self._mask[..., : self._width])

    def _forward_fixed(self, tokens: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
        """As `_forward`, of tensors whose shapes do not depend on the step."""
        for layer in self._cache.layers:
            layer.columns = columns
        visible = self._column <= columns[-1]
        mask = aligned(self._mask.masked_fill(~visible, -torch.inf))
        return self._forward(tokens, positions, mask)

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self._policy(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return logits.flatten(0, 1)

    def keep(self, rows: Tensor) -> bool:
        """Not of use: the completions of a prompt lie in one row."""
        return False
