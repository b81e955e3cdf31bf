"""Rollout: sampling a group of completions from one pass over its prompt.

Completions begin with tokens that were drafted in the prompt's own pass (`stages.grpo.drafts`), as
far as the draws pick them. The rest of the G completions of a prompt is decoded side by side in one
row: each step feeds G tokens, one per completion, and a mask lets each attend to the prompt and to
its own past. So the prompt's keys and
values are in memory once, not G times, and are not copied. Random numbers belong to a prompt and a
completion, not to a call: the same seed gives the same completions however many prompts share a
call, on one process or several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation.logits_process import (
    LogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stages.grpo.drafts import DraftPass, without_drafts
from stages.policy.kv_cache import PreallocatedLayer
from stages.policy.prefill import PromptPass
from stages.policy.prompt_batch import PromptBatch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    `temperature` 0 is greedy; `eos_ids` end a completion, `pad` fills it up; `suppressed` tokens
    are never drawn.
    """

    max_tokens: int
    eos_ids: tuple[int, ...]
    pad: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    suppressed: tuple[int, ...] = ()

    def warpers(self) -> LogitsProcessorList:
        """Logits processors, in the order of transformers' `generate`."""
        processors: list[LogitsProcessor] = []
        if self.suppressed:
            processors.append(SuppressTokensLogitsProcessor(list(self.suppressed)))
        if self.temperature not in (0.0, 1.0):
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            processors.append(TopPLogitsWarper(self.top_p))
        return LogitsProcessorList(processors)


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

    `drafted`: completions that ended within the trie; `forwards`: forward passes of single tokens.
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
) -> Sampled:
    """Sample B * G completions from a pass over B prompts with drafts, and step by step behind it.

    `draft_pass` is without gradients; `uniform` (B, G, max_tokens) are the draws.
    """
    group, max_tokens = uniform.shape[1:]
    device = prompts.ids.device
    uniform = uniform.to(device)
    written, path = _follow_drafts(prompts, draft_pass, uniform, sampling)
    lengths = torch.tensor([[len(each) for each in row] for row in written], device=device)
    unfinished = torch.tensor(
        [[not _is_complete(each, sampling) for each in row] for row in written], device=device
    )
    drafted = int((~unfinished).sum())
    rows = list(chain.from_iterable(written))
    if drafted == len(rows):
        return Sampled(rows, drafted)
    tokens = torch.full(uniform.shape, sampling.pad, device=device)  # (B, G, max_tokens)
    for place, each in zip(tokens.view(-1, max_tokens), rows, strict=True):
        place[: len(each)] = torch.tensor(each, device=device)
    steps = int((max_tokens - lengths)[unfinished].max())
    decoder = _Decoder(policy, prompts, draft_pass, path, group, steps)
    warpers = sampling.warpers()
    eos_ids = torch.tensor(sampling.eos_ids, device=device)
    prompt_ids = prompts.ids.repeat_interleave(group, 0)  # warpers take them and ignore them
    for step in range(steps):
        at = (lengths + step).clamp(max=max_tokens - 1)[..., None]  # of the token to be drawn
        fed = tokens.gather(2, at - 1)[..., 0]
        logits = decoder.forward(fed, lengths + step)
        scores = warpers(prompt_ids, logits.flatten(0, 1).float()).view(logits.shape)
        chosen = _choose(scores, uniform.gather(2, at), sampling)[..., 0]
        kept = torch.where(unfinished, chosen, tokens.gather(2, at)[..., 0])
        tokens.scatter_(2, at, kept[..., None])
        full = lengths + step + 1 >= max_tokens
        unfinished = unfinished & ~torch.isin(chosen, eos_ids) & ~full
        if not bool(unfinished.any()):
            break
    rows = [_until_end(row, sampling.eos_ids) for row in tokens.flatten(0, 1).tolist()]
    return Sampled(rows, drafted, step + 1)


def _follow_drafts(
    prompts: PromptBatch, draft_pass: DraftPass, uniform: Tensor, sampling: Sampling
) -> tuple[list[list[list[int]]], Tensor]:
    """Draw tokens as long as they are in the trie, and the first one that is not.

    Returns the tokens of each completion, and (B, G, N), the nodes that it went through.
    """
    batch, group, max_tokens = uniform.shape
    trie = draft_pass.trie
    nodes = len(trie) + 1
    warpers = sampling.warpers()
    scores = warpers(
        prompts.ids.repeat_interleave(nodes, 0), draft_pass.logits.flatten(0, 1).float()
    ).view(batch, nodes, -1)
    depths = trie.depths
    drawn_at = torch.tensor(depths, device=uniform.device).clamp(max=max_tokens - 1)
    # (B, N + 1, G): what each completion draws at each node
    chosen = _choose(scores, uniform[:, :, drawn_at].transpose(1, 2), sampling).tolist()
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
                node = None if _is_complete(tokens, sampling) else children[node].get(tokens[-1])
            written[-1].append(tokens)
    return written, path


class _Decoder:
    """Feeds a token of each of B * G completions, which attend to the prompt and to themselves."""

    def __init__(
        self,
        policy: nn.Module,
        prompts: PromptBatch,
        draft_pass: DraftPass,
        path: Tensor,
        group: int,
        steps: int,
    ) -> None:
        """`path`: (B, G, N), the nodes of the trie that are part of a completion."""
        device = prompts.ids.device
        batch, self._width = len(prompts), prompts.ids.shape[1] + path.shape[2]
        self._policy = policy
        self._group = group
        # columns of the cache: the prompt, the trie, then per step one token of each completion
        owner = torch.arange(group * steps, device=device) % group
        is_own = torch.arange(group, device=device)[:, None] == owner  # (G, G * steps)
        sees_prompt = prompts.mask.bool()[:, None, :].expand(-1, group, -1)
        parts = [sees_prompt, path.to(device), is_own.expand(batch, group, -1)]
        self._mask = torch.cat(parts, dim=2)[:, None]  # (B, 1, G, P + N + G * steps)
        self._cache = DynamicCache()
        self._cache.layers = [
            PreallocatedLayer.from_prefix(keys, values, group * steps)
            for keys, values in draft_pass.keys_values
        ]
        self._last = prompts.positions[:, :, -1:]  # (3, B, 1)
        self._fed = 0

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Logits (B, G, V) after tokens (B, G), the `places`-th (from 1) of their completions."""
        self._fed += self._group
        return self._policy(
            input_ids=tokens,
            attention_mask=self._mask[..., : self._width + self._fed],
            position_ids=self._last + places,
            past_key_values=self._cache,
            use_cache=True,
        ).logits


def _is_complete(tokens: Sequence[int], sampling: Sampling) -> bool:
    return len(tokens) == sampling.max_tokens or tokens[-1] in sampling.eos_ids


def _choose(scores: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Tokens (..., K) of logits (..., V) and draws (..., K); all the likeliest if it is greedy."""
    if sampling.temperature == 0:
        return scores.argmax(-1, keepdim=True).expand(uniform.shape)
    return _inverse_cdf(scores, uniform)


def _inverse_cdf(scores: Tensor, uniform: Tensor) -> Tensor:
    """Inverse transform sampling: tokens (..., K) of logits (..., V) and draws (..., K).

    A token of probability 0 is never drawn.
    """
    cumulative = torch.softmax(scores, dim=-1).double().cumsum(-1)
    total = cumulative[..., -1:]
    # rounding could lift a draw to the total, which lies after the last token
    threshold = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold.contiguous(), right=True)


def _until_end(tokens: list[int], eos_ids: tuple[int, ...]) -> list[int]:
    """Truncate after the first end token."""
    for index, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[: index + 1]
    return tokens
