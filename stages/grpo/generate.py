"""Greedy answers of a policy to many questions: left-padded batches, each picture decoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from stages.errors import InputError
from stages.grpo.policy import vision_token_ids
from stages.grpo.prompts import chat


@dataclass(frozen=True)
class Completion:
    """What a policy wrote: the text without special tokens, and its length in tokens, the end token among them."""

    text: str
    tokens: int


@torch.inference_mode()
def answer_greedily(
    policy: PreTrainedModel, processor: Any, asked: Sequence[tuple[str, str]], *, batch_size: int, max_new_tokens: int
) -> Iterator[list[Completion]]:
    """Answer (image path, prompt words) pairs in order, a list of completions a batch.

    Pairs with the same path that stand together share one decoding of the picture. Placeholders of pictures are never
    generated. Raises InputError naming an image that does not open.
    """
    policy.eval()
    ends = policy.generation_config.eos_token_id
    ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=policy.device)
    path, picture = "", None
    for start in range(0, len(asked), batch_size):
        pictures, texts = [], []
        for image, words in asked[start : start + batch_size]:
            if image != path or picture is None:
                path, picture = image, _open(Path(image))
            pictures.append(picture)
            texts.append(processor.apply_chat_template(chat(words), add_generation_prompt=True, tokenize=False))
        inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt").to(policy.device)
        written = policy.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, suppress_tokens=vision_token_ids(processor))[
            :, inputs["input_ids"].shape[1] :
        ]
        ended = torch.isin(written, ends)
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, written.shape[1])
        yield [
            Completion(processor.tokenizer.decode(row[:length], skip_special_tokens=True), int(length))
            for row, length in zip(written, lengths, strict=True)
        ]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise InputError(f"image {path} does not open ({error}); run `dvc repro resize` again") from error
