"""Numerical equivalence of one shared prompt and G separate copies, on one step's completions."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TypedDict

import torch
from torch import Tensor

from benchmarks.grpo_step.g_copies import GCopies, log_probabilities
from benchmarks.grpo_step.trainers import TrainerStep


class Differences(TypedDict):
    """Of our step from separate copies.

    `max_logp_diff`: largest absolute difference of log-probabilities of policy and reference;
    `grad_rel_diff`: norm of the difference of the gradients of all parameters, over the norm of
    theirs; `grad_rounding`: the same between theirs under autocast and without: what rounding alone
    makes of gradients. None where nothing is rounded.
    """

    max_logp_diff: float
    grad_rel_diff: float
    grad_rounding: float | None


def compare(ours: TrainerStep, theirs: GCopies, examples: list[dict[str, Any]]) -> Differences:
    """Compare our step with separate copies; ours samples, both score the same completions."""
    trainer: Any = ours.trainer
    policy = theirs.policy
    ours.choose_tower()
    with ours.prepared():
        batch = trainer._prepare_inputs(ours.rows(examples))
        reference = ours.scores["reference"]
        trainer.compute_loss(policy, batch).backward()
    trainer._step += 1  # otherwise the next step would reuse this batch
    scores = ours.scores["policy forward"]
    gradients = _take_gradients(policy)
    theirs.choose_tower()
    groups = batch["completion_ids"].view(len(examples), theirs.group, -1)
    advantages = batch["advantages"].view(len(examples), theirs.group)

    def gradients_of_copies(*, unrounded: bool) -> dict[str, Tensor]:
        for number, example in enumerate(examples):
            prompt = theirs.copies(example)
            loss = theirs.loss(prompt, groups[number], advantages[number], unrounded=unrounded)
            (loss / len(examples)).backward()
        return _take_gradients(policy)

    max_difference = 0.0
    for number, example in enumerate(examples):
        prompt = theirs.copies(example)
        rows = slice(number * theirs.group, (number + 1) * theirs.group)
        with torch.no_grad(), theirs.autocast():
            for model, our_scores in ((policy, scores), (theirs.reference, reference)):
                difference = log_probabilities(model, prompt, groups[number]) - our_scores[rows]
                max_difference = max(max_difference, float(difference.abs().max()))
    separate = gradients_of_copies(unrounded=False)
    rounding = None
    if theirs.autocast is not nullcontext:
        rounding = _relative_difference(separate, gradients_of_copies(unrounded=True))
    return {
        "max_logp_diff": max_difference,
        "grad_rel_diff": _relative_difference(gradients, separate),
        "grad_rounding": rounding,
    }


def _relative_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients, over the norm of the other ones."""
    squares = sum(float((other[name] - one[name]).double().pow(2).sum()) for name in other)
    return float(
        (squares / sum(float(each.double().pow(2).sum()) for each in other.values())) ** 0.5
    )


def _take_gradients(policy: Any) -> dict[str, Tensor]:
    """Parameter name -> its gradient, which is removed from the policy."""
    gradients = {
        name: parameter.grad
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }
    policy.zero_grad(set_to_none=True)
    return gradients
