"""Med-R1's released GRPO step as a baseline, rewritten for current transformers.

Source: Corleno/Med-R1, open_r1/trainer/grpo_trainer.py (arXiv 2503.13939). One prompt at a time
(its per-device batch of 1); gradients accumulate over the prompts of an optimiser step. The
processor runs once per prompt; everything else runs on G copies: generation with the images of G
prompts through the tower, the policy over G rows of prompt and completion, and a separate reference
likewise. Logits are computed for the full vocabulary at every position, in the prefill too (as in
the Qwen2-VL of the transformers it pins), and in float32 (as accelerate returns them);
log-probabilities row by row. Loss: mean over completions of the mean over tokens of advantage and
beta * KL (k3), without clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from trl.data_utils import prepare_multimodal_messages

from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.models import reward
from benchmarks.grpo_step.setting import BETA
from stages.grpo.batch import images_of
from stages.policy.prompt_batch import backbone
from stages.policy.vision_attention import batch_images, batches_images


def embed_patches_by_convolution(policy: Any) -> None:
    """Restore transformers' patch embedding by convolution.

    Our engine replaces it by a matrix product (stages/policy/vision_features.py).
    """
    vars(policy.model.visual.patch_embed.proj).pop("forward", None)


def baseline_batches_images(policy: Any) -> bool:
    """Whether the towers of the baselines attend to all images of one size in one call.

    On a GPU: Med-R1 ran flash-attn, which takes all images in one call and asks the device for no
    lengths, and transformers' sdpa would wait for the GPU in every block. The bits forward are the
    same. A tower with flash-attn, where it is installed, is not changed.
    """
    return bool(policy.device.type == "cuda")


def tower_attention(policy: Any) -> str:
    """Name of the attention that the tower of a policy has now."""
    if batches_images(policy):
        return "sdpa, images of one size together"
    return str(backbone(policy).visual.config._attn_implementation)


@dataclass(frozen=True)
class Copies:
    """One prompt repeated G times: forward inputs of G rows (or G times the patches), P tokens."""

    fields: dict[str, Tensor]
    tokens: int

    def followed_by(self, completions: Tensor) -> dict[str, Tensor]:
        """Forward inputs with completions (G, C) after the prompt."""
        additions = {
            "input_ids": completions,
            "attention_mask": torch.ones_like(completions),
            "mm_token_type_ids": torch.zeros_like(completions),
        }
        return self.fields | {
            name: torch.cat([self.fields[name], values], dim=1)
            for name, values in additions.items()
        }


@dataclass(frozen=True)
class GCopies:
    """The step of one policy; `generation` samples completions of one fixed length.

    `autocast`: the context of its forward passes.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel
    processor: Any
    generation: GenerationConfig
    group: int
    clock: Clock
    beta: float = BETA
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def choose_tower(self) -> None:
        """Set how the vision towers of policy and reference compute, which other steps share."""
        for policy in (self.policy, self.reference):
            embed_patches_by_convolution(policy)
            batch_images(policy, baseline_batches_images(policy))

    def backward(self, examples: list[dict[str, Any]]) -> None:
        """Sample, score and accumulate gradients of a step; examples as of `train_dataset`."""
        self.choose_tower()
        for example in examples:
            prompt = self.copies(example)
            completions = self.sample(prompt)
            loss = self.loss(prompt, completions, advantages(completions))
            with self.clock.part("backward"):
                (loss / len(examples)).backward()

    def copies(self, example: dict[str, Any]) -> Copies:
        """Process one prompt and its images, then repeat the result G times."""
        images = images_of(example)
        chat = prepare_multimodal_messages(example["prompt"], images=images)
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        fields = self.processor(text=[text], images=images, return_tensors="pt").to(
            self.policy.device
        )
        copies = {
            name: value.repeat(self.group, *[1] * (value.dim() - 1))
            for name, value in fields.items()
        }
        return Copies(copies, fields["input_ids"].shape[1])

    @torch.no_grad()
    def sample(self, prompt: Copies) -> Tensor:
        """Completions (G, C), with G times the images through the tower.

        transformers 4.57 copies them for `num_return_sequences` too.
        """
        with self.clock.part("rollout"), self.autocast():
            rows = self.policy.generate(
                **prompt.fields, generation_config=self.generation, logits_to_keep=0
            )
            return rows[:, prompt.tokens :]

    def loss(
        self, prompt: Copies, completions: Tensor, advantages: Tensor, *, unrounded: bool = False
    ) -> Tensor:
        """Loss of one group: completions (G, C), advantages (G,).

        `unrounded`: the policy computes in the type of its weights, without autocast.
        """
        autocast = nullcontext if unrounded else self.autocast
        with self.clock.part("policy forward"), autocast():
            logps = log_probabilities(self.policy, prompt, completions)
        with self.clock.part("reference"), torch.inference_mode(), self.autocast():
            reference = log_probabilities(self.reference, prompt, completions)
        kl = torch.exp(reference - logps) - (reference - logps) - 1
        gain = torch.exp(logps - logps.detach()) * advantages[:, None]
        return -(gain - self.beta * kl).mean(1).mean()


def log_probabilities(model: PreTrainedModel, prompt: Copies, completions: Tensor) -> Tensor:
    """Log-probabilities (G, C) of completions (G, C), from logits (G, P + C, V)."""
    fields = prompt.followed_by(completions)
    logits = model(**fields, use_cache=False).logits.float()[:, :-1]
    targets = fields["input_ids"][:, 1:]
    rows = [
        torch.log_softmax(row, dim=-1).gather(1, ids[:, None])[:, 0]
        for row, ids in zip(logits, targets, strict=True)
    ]
    return torch.stack(rows)[:, prompt.tokens - 1 :]


def advantages(completions: Tensor) -> Tensor:
    """Group-normalized advantages (G,): (rewards - mean) / (standard deviation + 1e-4)."""
    rewards = torch.tensor(reward(completions.tolist()), device=completions.device)
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)
