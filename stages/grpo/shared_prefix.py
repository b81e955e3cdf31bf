"""Shared-prefix scoring: prompt and image are computed once per group, not once per completion.

A group is packed into one row: the prompt without its last token (P - 1 columns), then a segment of
C columns per completion. A segment is the prompt's last token and all but the last token of the
completion, so its j-th hidden state predicts completion token j. It attends to the prompt and to
itself, through a mask (B, 1, T, T), and continues the prompt's M-RoPE positions as if it
stood alone. Log-probabilities and gradients equal those of G separate rows; G - 1 passes over
prompt and image are saved, and logits are computed only where they predict a completion token. A
no-think answer is some ten tokens after a prompt of hundreds, so this is nearly all of a step.

Two variants run on the prompt's cached keys and values instead. `score_packed_on_cache` packs the
segments alone: one pass over the prompt, with gradients, then serves rollout and loss.
`score_separately_on_cache` gives each segment a row of its own: in a packed row of long
completions, most of the attention is computed only to be masked away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from stages.policy.last_layer import narrow_last_layer
from stages.policy.masks import additive, include_diagonal
from stages.policy.prefill import ImageInputs, PromptPass, prefill_prompts
from stages.policy.prompt_batch import PromptBatch, recomputes_activations

PACK_MAX_TOKENS: Final = 256
"""Completion tokens of a group (G * C) up to which its segments are packed into one row.

Measured on a CPU: at 80 tokens one row is a tenth faster, at 1200 separate rows are a third faster.
"""


@dataclass(frozen=True)
class SharedRows:
    """Groups packed into B rows of T = P - 1 + G * C tokens; the last G * C predict completions.

    `input_ids`: (B, T); `mask`: (B, 1, T, T), true where a query (row) attends to a key (column);
    `positions`: (3, B, T).
    """

    input_ids: Tensor
    mask: Tensor
    positions: Tensor


def pack_rows(prompts: PromptBatch, completion_ids: Tensor, completion_mask: Tensor) -> SharedRows:
    """Pack B prompts with their completions (B, G, C), right-padded; the mask is 0 and 1."""
    _, group, length = completion_ids.shape
    prefix = prompts.ids.shape[1] - 1
    device = completion_ids.device
    segment_ids, segment_mask = _segments(prompts, completion_ids, completion_mask)
    real = torch.cat([prompts.mask[:, :-1], segment_mask.flatten(1)], dim=1).bool()  # (B, T)
    # member (T,): the completion a column belongs to, -1 for the prompt
    member = torch.full((prefix + group * length,), -1, device=device)
    member[prefix:] = torch.arange(group, device=device).repeat_interleave(length)
    column = torch.arange(len(member), device=device)
    causal = column[:, None] >= column
    same_segment = (member == -1) | (member[:, None] == member)
    mask = include_diagonal(causal & same_segment & real[:, None, :])
    # the prompt's last token opens each segment, so each starts at that token's position
    segment_positions = prompts.positions[:, :, -1:] + torch.arange(length, device=device)
    positions = torch.cat(
        [prompts.positions[:, :, :-1], segment_positions.repeat(1, 1, group)], dim=2
    )
    ids = torch.cat([prompts.ids[:, :-1], segment_ids.flatten(1)], dim=1)
    return SharedRows(ids, mask[:, None], positions)


def _segments(
    prompts: PromptBatch, completion_ids: Tensor, completion_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, G, C) of the segments: shifted by one, after the prompt's last token."""
    batch, group, _ = completion_ids.shape
    last = prompts.ids[:, None, -1:].expand(batch, group, 1)
    ids = torch.cat([last, completion_ids[:, :, :-1]], dim=2)
    mask = torch.cat([torch.ones_like(last), completion_mask[:, :, :-1]], dim=2)
    return ids, mask


def fits_one_row(group_size: int, tokens: int) -> bool:
    """Whether one row is cheaper for a group of completions of up to `tokens` tokens."""
    return group_size * tokens <= PACK_MAX_TOKENS


def score(
    policy: nn.Module,
    prompts: PromptBatch,
    image_inputs: ImageInputs,
    completion_ids: Tensor,
    completion_mask: Tensor,
    scorer: CompletionScorer,
    prompt_pass: PromptPass | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies (B * G, C) of completions (B, G, C).

    The completions of a group go in one row if the scorer is `packed`, else in one row each, on the
    cache of `prompt_pass`, an earlier pass over the prompts, or of a new one. Where activations are
    recomputed and there is no earlier pass, they always go in one row.
    """
    packed = scorer.packed
    if packed is None:
        packed = fits_one_row(*completion_ids.shape[1:])
    # transformers returns no KV cache where activations are recomputed
    if prompt_pass is None and (packed or recomputes_activations(policy)):
        return score_packed(policy, prompts, image_inputs, completion_ids, completion_mask, scorer)
    prompt_pass = prompt_pass or prefill_prompts(policy, prompts, image_inputs)
    score_on_cache = score_packed_on_cache if packed else score_separately_on_cache
    return score_on_cache(policy, prompts, prompt_pass, completion_ids, completion_mask, scorer)


def score_packed(
    policy: nn.Module,
    prompts: PromptBatch,
    image_inputs: ImageInputs,
    completion_ids: Tensor,
    completion_mask: Tensor,
    scorer: CompletionScorer,
) -> tuple[Tensor, Tensor | None]:
    """Score prompt and segments in one row: a single forward pass."""
    rows = pack_rows(prompts, completion_ids, completion_mask)
    inputs = {
        "attention_mask": additive(rows.mask, policy),
        "position_ids": rows.positions,
        "use_cache": False,
    }
    return scorer.run(policy, image_inputs(rows.input_ids) | inputs, completion_ids)


def score_packed_on_cache(
    policy: nn.Module,
    prompts: PromptBatch,
    prompt_pass: PromptPass,
    completion_ids: Tensor,
    completion_mask: Tensor,
    scorer: CompletionScorer,
) -> tuple[Tensor, Tensor | None]:
    """Score the segments of a group in one row, on the cache of a pass over the prompts."""
    rows = pack_rows(prompts, completion_ids, completion_mask)
    prefix = prompts.ids.shape[1] - 1
    inputs = {
        "input_ids": rows.input_ids[:, prefix:],
        "attention_mask": additive(rows.mask[:, :, prefix:], policy),
        "position_ids": rows.positions[:, :, prefix:],
        "past_key_values": prompt_pass.cache(prefix),
    }
    return scorer.run(policy, inputs, completion_ids)


def score_separately_on_cache(
    policy: nn.Module,
    prompts: PromptBatch,
    prompt_pass: PromptPass,
    completion_ids: Tensor,
    completion_mask: Tensor,
    scorer: CompletionScorer,
) -> tuple[Tensor, Tensor | None]:
    """Score each segment in a row of its own, on the prompt's cache repeated G times.

    No attention between completions is computed: cheaper if they are long.
    """
    batch, group, length = completion_ids.shape
    prefix = prompts.ids.shape[1] - 1
    device = completion_ids.device
    segment_ids, segment_mask = _segments(prompts, completion_ids, completion_mask)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    real = segment_mask.flatten(0, 1).bool()  # (B * G, C)
    own = include_diagonal(causal & real[:, None, :])  # (B * G, C, C)
    prompt = prompts.mask[:, :-1].bool().repeat_interleave(group, 0)  # (B * G, P - 1)
    mask = torch.cat([prompt[:, None, :].expand(-1, length, -1), own], dim=2)
    start = prompts.positions[:, :, -1:].repeat_interleave(group, 1)  # (3, B * G, 1)
    inputs = {
        "input_ids": segment_ids.flatten(0, 1),
        "attention_mask": additive(mask[:, None], policy),
        "position_ids": start + torch.arange(length, device=device),
        "past_key_values": prompt_pass.cache(prefix, group),
    }
    return scorer.run(policy, inputs, completion_ids.view(batch * group, 1, length))


@dataclass(frozen=True)
class CompletionScorer:
    """Runs a policy; turns its last hidden states into log-probabilities of completions.

    `fused` projects tile by tile and never stores logits, with the head TRL added to the policy
    (`add_fused_lm_head`): for large vocabularies and long completions. `entropy` also returns
    entropies, without gradient. `packed`: see `score`; None: as `fits_one_row` says.
    """

    temperature: float
    fused: bool = False
    entropy: bool = False
    packed: bool | None = None

    def run(
        self, policy: nn.Module, inputs: dict[str, Any], completion_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run the policy; its last G * C hidden states score the completions (B, G, C).

        Returns log-probabilities and entropies (B * G, C).
        """
        batch, group, length = completion_ids.shape
        predicting = group * length
        with narrow_last_layer(policy, predicting) as narrowed:
            if self.fused:
                return self._fused(policy, inputs, completion_ids, narrowed)
            logits = policy(**inputs, logits_to_keep=predicting).logits
        logits = logits.float().view(batch * group, length, -1) / self.temperature
        logps = selective_log_softmax(logits, completion_ids.flatten(0, 1))
        return logps, entropy_from_logits(logits.detach()) if self.entropy else None

    def _fused(
        self, policy: nn.Module, inputs: dict[str, Any], completion_ids: Tensor, narrowed: bool
    ) -> tuple[Tensor, Tensor | None]:
        batch, group, length = completion_ids.shape
        predicting = group * length
        labels = completion_ids.flatten(1)
        if not narrowed:
            # one label per hidden state: -100 for those before the segments
            queries = inputs["attention_mask"].shape[2]
            ignored = labels.new_full((batch, queries - predicting), -100)
            labels = torch.cat([ignored, labels], dim=1)
        outputs = policy(**inputs, shift_labels=labels, fused_lm_head=True)
        logps = outputs.log_probs[:, -predicting:].reshape(batch * group, length)
        entropies = outputs.entropy if self.entropy else None
        if entropies is not None:
            entropies = entropies[:, -predicting:].reshape(batch * group, length)
        return logps, entropies


def concatenate(scores: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Join the scores of chunks into those of one batch."""
    logps, entropies = zip(*scores, strict=True)
    return torch.cat(logps), None if entropies[0] is None else torch.cat(entropies)
