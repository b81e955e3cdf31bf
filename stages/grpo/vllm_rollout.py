"""Rollout by vLLM: TRL's integration, with checks that vLLM sees the prompt that is trained on.

TRL gives a colocated vLLM both the image and a prompt in which the processor has expanded the image
token to one token per image patch. vLLM then expands the first of them again, and the policy
answers a prompt that nobody trains on (74 tokens became 137 for a Qwen3-VL, as reported in vLLM's
pull request 57796). So each run of image tokens is collapsed to one first, and, in either mode, the
prompt that vLLM reports is compared with the intended one.
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
    """Raise InputError if vLLM or a GPU for it is missing."""
    if util.find_spec("vllm") is None:
        raise InputError(
            f"grpo.rollout {rollout} needs the package vllm: `pip install '.[vllm]'`, in a separate"
            " environment if it needs another torch than this one; or set it to policy"
        )
    if not torch.cuda.is_available():
        raise InputError(
            f"grpo.rollout {rollout} needs a GPU, and torch sees none: set it to policy"
        )


def vllm_arguments(grpo: Grpo) -> dict[str, Any]:
    """`grpo.rollout` as arguments of TRL's GRPOConfig."""
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
    """Arguments that keep image tokens out of completions, for transformers or for vLLM."""
    ids = vision_token_ids(processor)
    if rollout == "policy":
        return {"suppress_tokens": ids}
    return {"bad_words": processor.tokenizer.convert_ids_to_tokens(ids)}


def collapse_image_tokens(ids: Sequence[int], token: int) -> list[int]:
    """Replace each run of image tokens by one, as before the processor expanded it."""
    collapsed: list[int] = []
    for value, run in groupby(ids):
        collapsed += [value] if value == token else list(run)
    return collapsed


def patch_generate(vllm: Any, token: int) -> None:
    """Replace `generate` of TRL's `VLLMGeneration`: colocated, it collapses image tokens first.

    In both modes the new one raises InputError if vLLM reports another prompt than intended.
    """
    generate = vllm.generate
    colocated = vllm.mode == "colocate"

    def verified(prompts: list[list[int]], **options: Any) -> Any:
        collapsed = [collapse_image_tokens(ids, token) for ids in prompts] if colocated else prompts
        outputs = generate(prompts=collapsed, **options)
        for number, (intended, actual) in enumerate(zip(prompts, outputs[0], strict=True)):
            if list(actual) != list(intended):
                raise InputError(
                    f"vLLM saw {len(actual)} tokens ({list(actual).count(token)} image tokens) for"
                    f" row {number} of the batch, the processor makes {len(intended)}"
                    f" ({intended.count(token)}): it would answer another prompt than is trained"
                    " on. Give vLLM the checkpoint's own processor (with base.max_pixels), or set"
                    " grpo.rollout to policy"
                )
        return outputs

    vllm.generate = verified
