"""Med-R1's released GRPO step, as a baseline.

From Corleno/Med-R1, open_r1/trainer/grpo_trainer.py (arXiv 2503.13939).

Written from its description, for today's transformers. One prompt at a time, as its per-device
batch of 1; gradients add up over the prompts of an optimiser step. The processor runs once a
prompt; from there on everything is done for G copies: generation with G images through the tower,
the policy over G rows of prompt and completion, a separate reference likewise. Logits are made for
the full vocabulary at every position, in the prefill too, as the Qwen2-VL of the transformers it
pins does, and in float32, as accelerate hands them to its trainer; log-probabilities row by row.
Loss: the mean over completions of the mean over tokens of advantage and beta * KL (k3), no
clipping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.models import reward
from stages.prompts.styles import chat

BETA: Final = 0.04
"""Weight of the KL in all three; Med-R1's."""


def embed_patches_by_convolution(policy: Any) -> None:
    """Patch embedding by convolution, as in transformers.

    Our engine uses a matrix product instead (stages/policy/vision_features.py).
    """
    vars(policy.model.visual.patch_embed.proj).pop("forward", None)


@dataclass(frozen=True)
class Copies:
    """One prompt repeated G times: forward inputs of G rows (or G times the patches), P tokens."""

    fields: dict[str, Tensor]
    tokens: int

    def followed_by(self, completions: Tensor) -> dict[str, Tensor]:
        """The same, with completions (G, C) behind the prompt."""
        fields = dict(self.fields)
        fields["input_ids"] = torch.cat([fields["input_ids"], completions], dim=1)
        fields["attention_mask"] = torch.cat(
            [fields["attention_mask"], torch.ones_like(completions)], dim=1
        )
        fields["mm_token_type_ids"] = torch.cat(
            [fields["mm_token_type_ids"], torch.zeros_like(completions)], dim=1
        )
        return fields


@dataclass(frozen=True)
class GCopies:
    """The step of one policy; `generation` samples completions of one fixed length."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    processor: Any
    generation: GenerationConfig
    group: int
    clock: Clock

    def choose_embedding(self) -> None:
        """Policy and reference are shared with ways that embed patches otherwise."""
        for policy in (self.policy, self.reference):
            embed_patches_by_convolution(policy)

    def backward(self, examples: list[dict[str, Any]]) -> None:
        """Sample, score and accumulate gradients of a step over {"prompt".

        Chat, "image": PIL} examples.
        """
        self.choose_embedding()
        for example in examples:
            prompt = self.copies(example["prompt"][0]["content"], example["image"])
            completions = self.sample(prompt)
            loss = self.loss(prompt, completions, advantages(completions))
            with self.clock.part("backward"):
                (loss / len(examples)).backward()

    def copies(self, words: str, image: Any) -> Copies:
        """Process one prompt and its image, then copy."""
        text = self.processor.apply_chat_template(
            chat(words), add_generation_prompt=True, tokenize=False
        )
        fields = self.processor(text=[text], images=[image], return_tensors="pt").to(
            self.policy.device
        )
        copies = {
            name: value.repeat(self.group, *[1] * (value.dim() - 1))
            for name, value in fields.items()
        }
        return Copies(copies, fields["input_ids"].shape[1])

    @torch.no_grad()
    def sample(self, prompt: Copies) -> Tensor:
        """Completions (G, C).

        G images go through the tower: transformers 4.57 copies them for `num_return_sequences` too.
        """
        with self.clock.part("rollout"):
            rows = self.policy.generate(
                **prompt.fields, generation_config=self.generation, logits_to_keep=0
            )
            return rows[:, prompt.tokens :]

    def loss(self, prompt: Copies, completions: Tensor, advantages: Tensor) -> Tensor:
        """Of one group: completions (G, C), advantages (G,)."""
        with self.clock.part("policy forward"):
            logps = log_probabilities(self.policy, prompt, completions)
        with self.clock.part("reference"), torch.inference_mode():
            reference = log_probabilities(self.reference, prompt, completions)
        kl = torch.exp(reference - logps) - (reference - logps) - 1
        gain = torch.exp(logps - logps.detach()) * advantages[:, None]
        return -(gain - BETA * kl).mean(1).mean()


def log_probabilities(model: PreTrainedModel, prompt: Copies, completions: Tensor) -> Tensor:
    """Of every token of completions (G, C), from logits (G, P + C, V)."""
    fields = prompt.followed_by(completions)
    logits = model(**fields, use_cache=False).logits.float()[:, :-1]
    targets = fields["input_ids"][:, 1:]
    rows = [
        torch.log_softmax(row, dim=-1).gather(1, ids[:, None])[:, 0]
        for row, ids in zip(logits, targets, strict=True)
    ]
    return torch.stack(rows)[:, prompt.tokens - 1 :]


def advantages(completions: Tensor) -> Tensor:
    """(G,): rewards less their mean, over their standard deviation + 1e-4."""
    rewards = torch.tensor(reward(completions.tolist()), device=completions.device)
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)
