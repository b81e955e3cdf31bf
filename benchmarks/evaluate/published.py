"""The loop of Med-R1's evaluation scripts: each question's picture opened, processed and looked at for it alone, then `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from stages.corpus.dataset.image_store import open_image
from stages.generation.generate import Question
from stages.policy.loading import vision_token_ids
from stages.prompts.styles import chat

BATCH: Final = 64
MAX_NEW_TOKENS: Final = 256


@torch.inference_mode()
def answer_as_published(
    policy: PreTrainedModel, processor: Any, asked: Sequence[Question], *, most: int = MAX_NEW_TOKENS
) -> list[list[int]]:
    """The completions of the questions about their own pictures, token ids without padding; the published batch and, as it stands, length.

    Two things are not published: tokens that stand for pictures are suppressed, as ours are, which a trained model never writes; and the
    attention is what the policy has.
    """
    policy.eval()
    completions: list[list[int]] = []
    ends = policy.generation_config.eos_token_id or ()
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        texts = [processor.apply_chat_template(chat(each.words), tokenize=False, add_generation_prompt=True) for each in batch]
        pictures = [open_image(each.own) for each in batch]
        inputs = processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt").to(policy.device)
        generated = policy.generate(
            **inputs,
            use_cache=True,
            max_new_tokens=most,
            do_sample=False,
            suppress_tokens=vision_token_ids(processor),
        )
        for row in generated[:, inputs["input_ids"].shape[1] :].tolist():
            completions.append(row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))])
    return completions
