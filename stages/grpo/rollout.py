"""Sampling a group of completions behind one pass over its prompt.

The G completions of a prompt are decoded side by side in one row: each step feeds G tokens, one a
completion, and a mask lets each see the prompt and its own past. So the prompt's keys and values
lie in memory once, not G times, and are not copied. Random numbers belong to a prompt and a
completion, not to a call: the same seeds give the same completions however many prompts share a
call, on one process or several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

from stages.policy.kv_cache import PreallocatedLayer
from stages.policy.prefill import PromptPass
from stages.policy.prompt_batch import PromptBatch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    `temperature` 0 takes the likeliest; `suppressed` tokens are never drawn.
    """

    max_tokens: int
    ends: tuple[int, ...]
    pad: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    suppressed: tuple[int, ...] = ()

    def warpers(self) -> LogitsProcessorList:
        """In the order of transformers' `generate`."""
        chosen: list[LogitsProcessor] = []
        if self.suppressed:
            chosen.append(SuppressTokensLogitsProcessor(list(self.suppressed)))
        if self.temperature not in (0.0, 1.0):
            chosen.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chosen.append(TopPLogitsWarper(self.top_p))
        return LogitsProcessorList(chosen)


def draws(seed: int, prompts: Sequence[int], group: int, tokens: int) -> Tensor:
    """Uniform draws in [0, 1) of shape (B, G, tokens).

    Those of prompt n depend on seed and n only.
    """
    generators = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
        for number in prompts
    ]
    return torch.from_numpy(
        np.stack([generator.random((group, tokens)) for generator in generators])
    )


@torch.no_grad()
def sample_completions(
    policy: nn.Module, prompts: PromptBatch, done: PromptPass, uniform: Tensor, sampling: Sampling
) -> list[list[int]]:
    """Sample completions of B prompts: B * G token lists with end tokens.

    Stops when all have ended.

    `done` is the policy's pass over the prompts without gradients, `uniform` (B, G, max_tokens) the
    draws.
    """
    batch, group, most = uniform.shape
    device, width = prompts.ids.device, prompts.ids.shape[1]
    warpers, ends = sampling.warpers(), torch.tensor(sampling.ends, device=device)
    uniform = uniform.to(device)
    # columns: the prompt, then step after step a token of each completion
    member = torch.arange(group * most, device=device) % group
    own = (torch.arange(group, device=device)[:, None] == member).expand(batch, group, -1)
    mask = torch.cat([prompts.mask.bool()[:, None, :].expand(-1, group, -1), own], dim=2)[:, None]
    cache = DynamicCache()
    cache.layers = [
        PreallocatedLayer.from_prefix(keys, values, group * (most - 1))
        for keys, values in done.keys_values
    ]
    before = prompts.ids.repeat_interleave(group, 0)
    logits = done.logits[:, None].expand(batch, group, -1)
    tokens = torch.full((batch, group, most), sampling.pad, device=device)
    open_ = torch.ones(batch, group, dtype=torch.bool, device=device)
    for step in range(most):
        scores = warpers(before, logits.flatten(0, 1).float()).view(batch, group, -1)
        chosen = (
            scores.argmax(-1)
            if sampling.temperature == 0
            else _inverse(scores, uniform[:, :, step])
        )
        tokens[:, :, step] = torch.where(open_, chosen, sampling.pad)
        open_ = open_ & ~torch.isin(chosen, ends)
        if step == most - 1 or not bool(open_.any()):
            break
        logits = policy(
            input_ids=tokens[:, :, step],
            attention_mask=mask[..., : width + group * (step + 1)],
            position_ids=(prompts.positions[:, :, -1:] + 1 + step).expand(-1, -1, group),
            past_key_values=cache,
            use_cache=True,
        ).logits
    return [
        _until_end(row, sampling.ends) for row in tokens[:, :, : step + 1].flatten(0, 1).tolist()
    ]


def _inverse(scores: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF sampling: the token at which the cumulative probability passes the draw.

    A token of probability 0 is never drawn.
    """
    cumulative = torch.softmax(scores, dim=-1).double().cumsum(-1)
    total = cumulative[..., -1:]
    # rounding must not take a draw up to the total, behind the last token
    passed = torch.minimum(uniform[..., None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, passed, right=True)[..., 0]


def _until_end(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    """Cut behind the first end token."""
    return tokens[
        : next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
    ]
