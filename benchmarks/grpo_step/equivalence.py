"""Numerical equivalence of one shared prompt and G separate copies, on one step's completions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.grpo_step.g_copies import GCopies, log_probabilities
from benchmarks.grpo_step.trainers import TrainerStep


def compare(ours: TrainerStep, theirs: GCopies, examples: list[dict[str, Any]]) -> dict[str, float]:
    """Compare our step with separate copies; ours samples, both score the same completions.

    `max_logp_diff`: largest absolute difference of log-probabilities of policy and reference;
    `grad_rel_diff`: norm of the difference of the gradients of all parameters, over the norm of
    theirs.
    """
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
    max_difference = 0.0
    for number, example in enumerate(examples):
        prompt = theirs.copies(example)
        (theirs.loss(prompt, groups[number], advantages[number]) / len(examples)).backward()
        rows = slice(number * theirs.group, (number + 1) * theirs.group)
        with torch.no_grad(), theirs.autocast():
            for model, our_scores in ((policy, scores), (theirs.reference, reference)):
                difference = log_probabilities(model, prompt, groups[number]) - our_scores[rows]
                max_difference = max(max_difference, float(difference.abs().max()))
    separate = _take_gradients(policy)
    difference_squared = sum(
        float((separate[name] - gradients[name]).double().pow(2).sum()) for name in separate
    )
    norm_squared = sum(float(each.double().pow(2).sum()) for each in separate.values())
    return {
        "max_logp_diff": max_difference,
        "grad_rel_diff": (difference_squared / norm_squared) ** 0.5,
    }


def _take_gradients(policy: Any) -> dict[str, Tensor]:
    """Parameter name -> its gradient, which is removed from the policy."""
    gradients = {
        name: parameter.grad
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }
    policy.zero_grad(set_to_none=True)
    return gradients
