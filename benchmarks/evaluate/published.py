"""The loop of Med-R1's evaluation scripts.

Each question's image is opened, processed and encoded separately, then `generate` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from qwen_vl_utils import process_vision_info
from transformers import PreTrainedModel

from stages.corpus.dataset.image_store import open_image
from stages.generation.generate import Question
from stages.policy.loading import vision_token_ids
from stages.prompts.styles import chat

BATCH: Final = 64
MAX_NEW_TOKENS: Final = 256


@torch.inference_mode()
def answer_as_published(
    policy: PreTrainedModel,
    processor: Any,
    asked: Sequence[Question],
    *,
    most: int = MAX_NEW_TOKENS,
) -> list[list[int]]:
    """Answer questions with the published batching: token ids without padding.

    The batch size and the answer length are the published ones.

    Two things are not published: tokens that stand for images are suppressed, as ours are, which a
    trained model never writes; and the attention is what the policy has.
    """
    policy.eval()
    completions: list[list[int]] = []
    ends = policy.generation_config.eos_token_id or ()
    patch_size = processor.image_processor.patch_size
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        texts = [
            processor.apply_chat_template(
                chat(each.words), tokenize=False, add_generation_prompt=True
            )
            for each in batch
        ]
        # scales an image to whole patches by Pillow, before the processor would by torchvision
        images, _ = process_vision_info(
            [_with_image(each) for each in batch], image_patch_size=patch_size
        )
        inputs = processor(
            text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"
        ).to(policy.device)
        generated = policy.generate(
            **inputs,
            use_cache=True,
            max_new_tokens=most,
            do_sample=False,
            suppress_tokens=vision_token_ids(processor),
        )
        for row in generated[:, inputs["input_ids"].shape[1] :].tolist():
            completions.append(
                row[
                    : next(
                        (place + 1 for place, token in enumerate(row) if token in ends), len(row)
                    )
                ]
            )
    return completions


def _with_image(question: Question) -> list[dict[str, Any]]:
    """The chat, the image's place filled with the image that the question is about."""
    (turn,) = chat(question.words)
    image, words = turn["content"]
    return [{**turn, "content": [{**image, "image": open_image(question.own_image)}, words]}]
