"""Tiny policies of the supported families with random weights, and questions for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from stages.core.params import Grpo, load_params
from stages.corpus.sample import phantoms
from stages.grpo.trainer import build_trainer, train_dataset
from stages.policy.loading import load_policy, load_processor
from stages.prompts.styles import prompt_text

REPOSITORY = Path(__file__).parents[2]
BASE = REPOSITORY / "infra" / "base"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
QUESTIONS = (
    "Scan? A)CT, B)MRI",
    "How severe is the lesion? A)Mild, B)Moderate, C)Severe, D)None of these",
)


@cache
def processor() -> Any:
    return load_processor(BASE)


def random_policy(family: str, seed: int = 0) -> PreTrainedModel:
    """About a million float32 parameters, with the embedded base's processor."""
    base = AutoConfig.from_pretrained(BASE)
    text = base.text_config.to_dict()
    shared = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "patch_size": 24,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
    }
    vision = {
        "qwen2_vl": shared | {"embed_dim": 64, "hidden_size": 64},
        "qwen2_5_vl": (
            shared
            | {
                "intermediate_size": 96,
                "out_hidden_size": 64,
                "window_size": 96,
                "fullatt_block_indexes": [1],
            }
        ),
        "qwen3_vl": (
            shared
            | {
                "intermediate_size": 96,
                "out_hidden_size": 64,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            }
        ),
    }[family]
    kept = (
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "rms_norm_eps",
        "rope_parameters",
        "tie_word_embeddings",
    )
    text = {name: text[name] for name in kept} | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
    }
    tokens = {
        name: getattr(base, name)
        for name in (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        )
    }
    config = AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens
    )
    torch.manual_seed(seed)
    policy = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").float()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:  # wide enough that what a token attends to shows
                parameter.mul_(4)
    policy.generation_config.eos_token_id = [844, 842]
    policy.generation_config.pad_token_id = 842
    return policy


def embedded_policy() -> PreTrainedModel:
    return load_policy(BASE, dtype="float32", attention="sdpa")


def questions(folder: Path) -> list[dict[str, Any]]:
    """Two questions, each with an image of its own size, and so its own number of image tokens."""
    rng = np.random.default_rng(3)
    rows = []
    for number, problem in enumerate(QUESTIONS):
        image = folder / f"{number}.png"
        phantoms.draw(phantoms.sample_phantom(rng), ((384, 384), (96, 144))[number], rng).save(
            image
        )
        rows.append(
            {"image": str(image), "problem": problem, "gold": "A", "options": ["CT", "MRI"]}
        )
    return rows


def chats(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """As the engine hands them to the processor."""
    dataset = train_dataset(rows, "no-think")
    return [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": row["image"]},
                    {"type": "text", "text": row["prompt"][0]["content"]},
                ],
            }
        ]
        for row in (dataset[index] for index in range(len(rows)))
    ]


def words(row: dict[str, Any]) -> str:
    return prompt_text(row["problem"], "no-think", "train")


def trainer(folder: Path, policy: PreTrainedModel | None = None, **settings: Any) -> Any:
    """A trainer on two questions: 4 completions each and one optimiser step per batch."""
    small = {
        "num_generations": 4,
        "prompts_per_device": 2,
        "max_steps": 1,
        "save_steps": 0,
        "num_train_epochs": 100.0,
    }
    grpo = Grpo.model_validate(
        load_params(REPOSITORY / "params.yaml").grpo.model_dump() | small | settings
    )
    dataset = train_dataset(questions(folder), "no-think")
    if policy is None:
        policy = embedded_policy()
    else:  # the reference is opened from where the policy came from
        policy.save_pretrained(folder / "policy")
        policy = load_policy(folder / "policy", dtype="float32", attention="sdpa")
    return build_trainer(
        policy, processor(), dataset, grpo, "no-think", scratch=folder / "state", run_name="x"
    )
