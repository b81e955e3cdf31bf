"""The loop of Med-R1's evaluation scripts: every question's images are processed separately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from qwen_vl_utils import process_vision_info
from transformers import PreTrainedModel

from stages.corpus.dataset.image_store import open_image
from stages.generation.windows import Question
from stages.policy.loading import vision_token_ids
from stages.prompts.styles import chat

BATCH: Final = 64
MAX_NEW_TOKENS: Final = 256


@torch.inference_mode()
def answer_as_published(
    policy: PreTrainedModel,
    processor: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[list[int]]:
    """Answer questions with the published batching; token ids per question without padding.

    It differs from the published loop in two ways: image placeholder tokens are suppressed, as in
    ours (a trained model never samples them), and the attention is the policy's.
    """
    policy.eval()
    completions: list[list[int]] = []
    ends = policy.generation_config.eos_token_id or ()
    patch_size = processor.image_processor.patch_size
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        texts = [
            processor.apply_chat_template(
                chat(each.text, len(each.own_images)), tokenize=False, add_generation_prompt=True
            )
            for each in batch
        ]
        # scales images to whole patches with Pillow, before the processor would with torchvision
        images, _ = process_vision_info(
            [with_images(each) for each in batch], image_patch_size=patch_size
        )
        inputs = processor(
            text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"
        ).to(policy.device)
        generated = policy.generate(
            **inputs,
            use_cache=True,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            suppress_tokens=vision_token_ids(processor),
        )
        for row in generated[:, inputs["input_ids"].shape[1] :].tolist():
            lengths = (index + 1 for index, token in enumerate(row) if token in ends)
            completions.append(row[: next(lengths, len(row))])
    return completions


def with_images(question: Question) -> list[dict[str, Any]]:
    """The chat with the question's own images, opened."""
    (turn,) = chat(question.text, len(question.own_images))
    paths = iter(question.own_images)
    content = [
        {**part, "image": open_image(next(paths))} if part["type"] == "image" else part
        for part in turn["content"]
    ]
    return [{**turn, "content": content}]
