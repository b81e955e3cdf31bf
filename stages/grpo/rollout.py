"""Rollout: sampling a group of completions from one pass over its prompt.

The G completions of a prompt are decoded side by side in one row: each step feeds G tokens, one per
completion, and a mask lets each attend to the prompt and to its own past. So the prompt's keys and
values are in memory once, not G times, and are not copied. Random numbers belong to a prompt and a
completion, not to a call: the same seed gives the same completions however many prompts share a
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


@torch.no_grad()
def sample_completions(
    policy: nn.Module,
    prompts: PromptBatch,
    prompt_pass: PromptPass,
    uniform: Tensor,
    sampling: Sampling,
) -> list[list[int]]:
    """Sample B * G completions of B prompts: lists of token ids, end token included.

    `prompt_pass` is the policy's pass over the prompts, without gradients; `uniform`
    (B, G, max_tokens) are the draws.
    """
    batch, group, max_tokens = uniform.shape
    device = prompts.ids.device
    width = prompts.ids.shape[1]
    warpers = sampling.warpers()
    eos_ids = torch.tensor(sampling.eos_ids, device=device)
    uniform = uniform.to(device)
    # columns of the cache: the P tokens of the prompt, then per step one token of each completion
    column_owner = torch.arange(group * max_tokens, device=device) % group
    is_own = torch.arange(group, device=device)[:, None] == column_owner  # (G, G * max_tokens)
    # (B, 1, G, P + G * max_tokens): completion g attends to the prompt and to its own tokens
    sees_prompt = prompts.mask.bool()[:, None, :].expand(-1, group, -1)
    mask = torch.cat([sees_prompt, is_own.expand(batch, group, -1)], dim=2)[:, None]
    cache = DynamicCache()
    cache.layers = [
        PreallocatedLayer.from_prefix(keys, values, group * (max_tokens - 1))
        for keys, values in prompt_pass.keys_values
    ]
    prompt_ids = prompts.ids.repeat_interleave(group, 0)  # warpers take them and ignore them
    logits = prompt_pass.logits[:, None].expand(batch, group, -1)  # (B, G, V)
    tokens = torch.full((batch, group, max_tokens), sampling.pad, device=device)
    unfinished = torch.ones(batch, group, dtype=torch.bool, device=device)
    sampled = 0
    for step in range(max_tokens):
        scores = warpers(prompt_ids, logits.flatten(0, 1).float()).view(batch, group, -1)
        if sampling.temperature == 0:
            chosen = scores.argmax(-1)
        else:
            chosen = _inverse_cdf(scores, uniform[:, :, step])
        tokens[:, :, step] = torch.where(unfinished, chosen, sampling.pad)
        sampled = step + 1
        unfinished = unfinished & ~torch.isin(chosen, eos_ids)
        if step == max_tokens - 1 or not bool(unfinished.any()):
            break
        # all completions are at the same position: the one `step` tokens after the prompt
        position = prompts.positions[:, :, -1:] + 1 + step
        logits = policy(
            input_ids=tokens[:, :, step],
            attention_mask=mask[..., : width + group * (step + 1)],
            position_ids=position.expand(-1, -1, group),
            past_key_values=cache,
            use_cache=True,
        ).logits
    rows = tokens[:, :, :sampled].flatten(0, 1).tolist()
    return [_until_end(row, sampling.eos_ids) for row in rows]


def _inverse_cdf(scores: Tensor, uniform: Tensor) -> Tensor:
    """Inverse transform sampling: tokens (B, G) of logits (B, G, V) and draws (B, G).

    A token of probability 0 is never drawn.
    """
    cumulative = torch.softmax(scores, dim=-1).double().cumsum(-1)
    total = cumulative[..., -1:]
    # rounding could lift a draw to the total, which lies after the last token
    threshold = torch.minimum(uniform[..., None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0]


def _until_end(tokens: list[int], eos_ids: tuple[int, ...]) -> list[int]:
    """Truncate after the first end token."""
    for index, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[: index + 1]
    return tokens
