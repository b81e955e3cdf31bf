"""GRPO that computes a prompt and its image once for the whole group, not once for each completion.

A group is laid out in one row: the prompt without its last token, then a segment for each
completion. A segment is the prompt's last token and all but the last token of the completion, so
that its j-th hidden state predicts completion token j; it sees the prompt and itself, through a
boolean mask of shape (B, 1, T, T), and goes on from the prompt's M-RoPE positions as if it stood
alone. Log-probabilities and gradients are those of G separate rows; what is saved is G - 1 passes
over prompt and image, and no logits are made where no completion token is predicted. A no-think
answer is some ten tokens behind a prompt of hundreds, so that is nearly all of a step.

Where the prompt's keys and values are at hand already, from the pass that began the rollout, the
segments alone are run behind them (`score_segments`): one pass over the prompt, with gradients,
then serves rollout and loss. Long completions are run so as well, each in a row of its own
(`score_members`): in one row, most of what attention computes is masked away.

Related: Prefix Grouper (arXiv 2506.05433), which does the same for text with two attention calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from stages.policy.last_layer import narrow_last_layer
from stages.policy.prefill import ImageInputs, PromptPass, prefill_prompts, include_diagonal
from stages.policy.prompt_batch import PromptBatch, recomputes_activations

PACK_MAX_TOKENS: Final = 256
"""Completion tokens of a group up to which its segments share a row. Measured on a CPU: at 80 one
row is faster by a tenth, at 1200 rows of their own are by a third.
"""


@dataclass(frozen=True)
class SharedRows:
    """Packed groups, one per row: T = P - 1 + G * C tokens; the last G * C predict the completions.

    `input_ids` (B, T); `mask` (B, 1, T, T), true where a query (row) sees a key (column);
    `positions` (3, B, T).
    """

    input_ids: Tensor
    mask: Tensor
    positions: Tensor


def pack_rows(prompts: PromptBatch, completion_ids: Tensor, completion_mask: Tensor) -> SharedRows:
    """Rows of B prompts and their completions (B, G, C), padded on the right; mask of 0 and 1."""
    before, (batch, group, length) = prompts.ids.shape[1] - 1, completion_ids.shape
    device = completion_ids.device
    last = prompts.ids[:, None, -1:].expand(batch, group, 1)
    segments = torch.cat([last, completion_ids[:, :, :-1]], dim=2).flatten(1)
    real = torch.cat([torch.ones_like(last), completion_mask[:, :, :-1]], dim=2).flatten(1)
    real = torch.cat([prompts.mask[:, :-1], real], dim=1).bool()
    # which completion a column belongs to; the prompt is -1
    member = torch.full((before + group * length,), -1, device=device)
    member[before:] = torch.arange(group, device=device).repeat_interleave(length)
    column = torch.arange(len(member), device=device)
    sees = (column[:, None] >= column) & ((member == -1) | (member[:, None] == member))
    mask = include_diagonal(sees & real[:, None, :])
    following = (prompts.positions[:, :, -1:] + torch.arange(length, device=device)).repeat(
        1, 1, group
    )
    positions = torch.cat([prompts.positions[:, :, :-1], following], dim=2)
    return SharedRows(torch.cat([prompts.ids[:, :-1], segments], dim=1), mask[:, None], positions)


def score(
    policy: nn.Module,
    prompts: PromptBatch,
    images: ImageInputs,
    completion_ids: Tensor,
    completion_mask: Tensor,
    head: LMHeadOptions,
    done: PromptPass | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies (B * G, C) of completions (B, G, C), by the cheapest layout.

    `done` is a pass over the prompts that was made before, if any.
    """
    short = completion_ids[0].numel() <= PACK_MAX_TOKENS
    # recomputing activations, transformers keeps no keys and values
    if done is None and (short or recomputes_activations(policy)):
        return score_rows(policy, prompts, images, completion_ids, completion_mask, head)
    done = done or prefill_prompts(policy, prompts, images)
    return (score_segments if short else score_members)(
        policy, prompts, done, completion_ids, completion_mask, head
    )


def score_rows(
    policy: nn.Module,
    prompts: PromptBatch,
    images: ImageInputs,
    completion_ids: Tensor,
    completion_mask: Tensor,
    head: LMHeadOptions,
) -> tuple[Tensor, Tensor | None]:
    """Prompt and segments in one row: one call of the policy."""
    rows = pack_rows(prompts, completion_ids, completion_mask)
    inputs = {"attention_mask": rows.mask, "position_ids": rows.positions, "use_cache": False}
    return head(policy, images(rows.input_ids) | inputs, completion_ids)


def score_segments(
    policy: nn.Module,
    prompts: PromptBatch,
    done: PromptPass,
    completion_ids: Tensor,
    completion_mask: Tensor,
    head: LMHeadOptions,
) -> tuple[Tensor, Tensor | None]:
    """The segments of a group in one row, behind a pass over the prompts."""
    rows = pack_rows(prompts, completion_ids, completion_mask)
    before = prompts.ids.shape[1] - 1
    inputs = {
        "input_ids": rows.input_ids[:, before:],
        "attention_mask": rows.mask[:, :, before:],
        "position_ids": rows.positions[:, :, before:],
        "past_key_values": done.cache(before),
    }
    return head(policy, inputs, completion_ids)


def score_members(
    policy: nn.Module,
    prompts: PromptBatch,
    done: PromptPass,
    completion_ids: Tensor,
    completion_mask: Tensor,
    head: LMHeadOptions,
) -> tuple[Tensor, Tensor | None]:
    """Each segment in a row of its own, behind the prompt's keys and values repeated for its group.

    Nothing is computed between completions, which would be masked away: cheaper where they are
    long.
    """
    batch, group, length = completion_ids.shape
    before, device = prompts.ids.shape[1] - 1, completion_ids.device
    last = prompts.ids[:, None, -1:].expand(batch, group, 1)
    real = (
        torch.cat([torch.ones_like(last), completion_mask[:, :, :-1]], dim=2).flatten(0, 1).bool()
    )
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own = include_diagonal(causal & real[:, None, :])
    prompt = (
        prompts.mask[:, :-1].bool().repeat_interleave(group, 0)[:, None, :].expand(-1, length, -1)
    )
    inputs = {
        "input_ids": torch.cat([last, completion_ids[:, :, :-1]], dim=2).flatten(0, 1),
        "attention_mask": torch.cat([prompt, own], dim=2)[:, None],
        "position_ids": (
            prompts.positions[:, :, -1:].repeat_interleave(group, 1)
            + torch.arange(length, device=device)
        ),
        "past_key_values": done.cache(before, group),
    }
    return head(policy, inputs, completion_ids.view(batch * group, 1, length))


@dataclass(frozen=True)
class LMHeadOptions:
    """From hidden states to log-probabilities, at a temperature.

    `fused` projects tile by tile and keeps no logits, with the head TRL put into the policy
    (`add_fused_lm_head`): for large vocabularies and long completions. Entropies, without gradient,
    if asked for.
    """

    temperature: float
    fused: bool = False
    entropy: bool = False

    def __call__(
        self, policy: nn.Module, inputs: dict[str, Any], completion_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run the policy and score completions (B, G, C) from its last G * C hidden states."""
        batch, group, length = completion_ids.shape
        predicting = group * length
        with narrow_last_layer(policy, predicting) as alone:
            if self.fused:
                labels = completion_ids.flatten(1)
                if not alone:
                    ignored = labels.new_full(
                        (batch, inputs["attention_mask"].shape[2] - predicting), -100
                    )
                    labels = torch.cat([ignored, labels], dim=1)
                out = policy(**inputs, shift_labels=labels, fused_lm_head=True)
                logps, entropies = (
                    None if each is None else each[:, -predicting:].reshape(batch * group, length)
                    for each in (out.log_probs, out.entropy if self.entropy else None)
                )
                assert logps is not None
                return logps, entropies
            logits = policy(**inputs, logits_to_keep=predicting).logits
        logits = logits.float().view(batch * group, length, -1) / self.temperature
        logps = selective_log_softmax(logits, completion_ids.flatten(0, 1))
        return logps, entropy_from_logits(logits.detach()) if self.entropy else None


def concatenate(scores: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """The scores of chunks as those of one batch."""
    logps, entropies = zip(*scores, strict=True)
    return torch.cat(logps), None if entropies[0] is None else torch.cat(entropies)
