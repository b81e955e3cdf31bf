"""Do G separate copies and one shared prompt give the same numbers?

Two figures for one step's completions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.grpo_step.g_copies import GCopies, log_probabilities
from benchmarks.grpo_step.trainers import TrainerStep


def compare(ours: TrainerStep, theirs: GCopies, examples: list[dict[str, Any]]) -> dict[str, float]:
    """Compare our step with separate copies.

    `max_logp_diff` is the largest absolute difference of two log-probabilities, of the policy or
    the reference.

    `grad_rel_diff`: the norm of the difference of the gradients of all parameters, over the norm of
    theirs. Ours samples; both score the same completions, with the same rewards.
    """
    trainer: Any = ours.trainer
    policy = theirs.policy
    ours.choose_embedding()
    batch = trainer._prepare_inputs(ours.rows(examples))
    reference = ours.scores["reference"]
    trainer.compute_loss(policy, batch).backward()
    trainer._step += 1  # or the next step would find this one's batch
    scores, gradients = ours.scores["policy forward"], _take_gradients(policy)
    theirs.choose_embedding()
    groups = batch["completion_ids"].view(len(examples), theirs.group, -1)
    given = batch["advantages"].view(len(examples), theirs.group)
    largest = 0.0
    for number, example in enumerate(examples):
        prompt = theirs.copies(example["prompt"][0]["content"], example["image"])
        (theirs.loss(prompt, groups[number], given[number]) / len(examples)).backward()
        rows = slice(number * theirs.group, (number + 1) * theirs.group)
        with torch.no_grad():
            for model, mine in ((policy, scores), (theirs.reference, reference)):
                apart = log_probabilities(model, prompt, groups[number]) - mine[rows]
                largest = max(largest, float(apart.abs().max()))
    separate = _take_gradients(policy)
    apart_squared = sum(
        float((separate[name] - gradients[name]).double().pow(2).sum()) for name in separate
    )
    size_squared = sum(float(each.double().pow(2).sum()) for each in separate.values())
    return {"max_logp_diff": largest, "grad_rel_diff": (apart_squared / size_squared) ** 0.5}


def _take_gradients(policy: Any) -> dict[str, Tensor]:
    gradients = {
        name: parameter.grad
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }
    policy.zero_grad(set_to_none=True)
    return gradients
