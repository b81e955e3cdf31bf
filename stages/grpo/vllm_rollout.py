"""Rollout with vLLM: TRL's integration plus what it lacks for images.

TRL hands vLLM in the trainer's process prompts in which the processor has put a token for each part
of an image, and the image too; vLLM then makes room for the image again, behind the first of them,
and the policy answers a prompt that nobody trains on (74 tokens became 137 for a Qwen3-VL, by
vLLM's pull request 57796). So the tokens are made one again before, and the prompt that vLLM says
it has seen is compared with the one that was meant, in either mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from itertools import groupby
from typing import Any

import torch

from stages.core.errors import InputError
from stages.core.params import Grpo
from stages.policy.loading import vision_token_ids


def require_vllm(rollout: str) -> None:
    """InputError if vLLM or a GPU for it is missing."""
    if util.find_spec("vllm") is None:
        raise InputError(
            f"grpo.rollout {rollout} needs the package vllm: `pip install '.[vllm]'`, in an"
            " environment of its own if its torch is another than this one; or set it to policy"
        )
    if not torch.cuda.is_available():
        raise InputError(
            f"grpo.rollout {rollout} needs a GPU, and torch sees none: set it to policy"
        )


def vllm_arguments(grpo: Grpo) -> dict[str, Any]:
    """`grpo.rollout` in TRL's words."""
    if grpo.rollout == "policy":
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": grpo.rollout.removeprefix("vllm-"),
        "vllm_gpu_memory_utilization": grpo.vllm_memory_share,
        "vllm_max_model_length": grpo.max_prompt_length + grpo.max_completion_length,
        "vllm_server_base_url": grpo.vllm_server,
    }


def generation_kwargs(processor: Any, rollout: str) -> dict[str, Any]:
    """Sampling settings that exclude image placeholder tokens from completions."""
    ids = vision_token_ids(processor)
    if rollout == "policy":
        return {"suppress_tokens": ids}
    return {"bad_words": processor.tokenizer.convert_ids_to_tokens(ids)}


def collapse_image_tokens(ids: Sequence[int], token: int) -> list[int]:
    """A prompt with each image's run of tokens reduced to one, as before processing."""
    kept: list[int] = []
    for value, run in groupby(ids):
        kept += [value] if value == token else list(run)
    return kept


def verify_prompts(vllm: Any, token: int) -> None:
    """Make TRL's `VLLMGeneration` see each image once.

    `generate` then raises InputError where vLLM's prompt differs from the intended one.
    """
    generate, colocated = vllm.generate, vllm.mode == "colocate"

    def checked(prompts: list[list[int]], **more: Any) -> Any:
        made = generate(
            prompts=[collapse_image_tokens(ids, token) for ids in prompts]
            if colocated
            else prompts,
            **more,
        )
        for number, (meant, seen) in enumerate(zip(prompts, made[0], strict=True)):
            if list(seen) != list(meant):
                raise InputError(
                    f"vLLM saw {len(seen)} tokens for prompt {number} of a batch,"
                    f" {list(seen).count(token)} of them of its image, where the processor makes"
                    f" {len(meant)} with {meant.count(token)}: it would answer another prompt than"
                    " is trained on. Give vLLM the checkpoint's own processor (base.max_pixels"
                    " too), or set grpo.rollout to policy"
                )
        return made

    vllm.generate = checked
