"""Losses of the embedded base: answers given an image or its facts, and what image tokens say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.corpus.sample import phantoms
from stages.pretraining.embedded import IMAGE_TOKENS
from stages.pretraining.exercises import Exercise, Images

if TYPE_CHECKING:
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

_IGNORED: Final = -100
"""Label of a token that has no loss."""

LossAndAccuracy = tuple[Tensor, float]
"""Loss of a batch, and the share of its predictions that are right."""


def answer_loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    batch: list[Exercise],
    pixels: Tensor | None,
    letter_weight: float = 1.0,
) -> LossAndAccuracy:
    """Weighted cross-entropy of completion tokens, and accuracy of answer letters.

    Without `pixels` the eye is perfect: an image's tokens are the embeddings of its facts.
    """
    inputs, labels = _encode(processor, batch)
    grid = inputs.pop("image_grid_thw")
    if pixels is None:
        ids = inputs.pop("input_ids")
        types = inputs.pop("mm_token_type_ids")
        positions, _ = model.model.get_rope_index(
            ids, types, image_grid_thw=grid, attention_mask=inputs["attention_mask"]
        )
        words = torch.tensor([_fact_ids(processor, exercise.facts) for exercise in batch]).flatten()
        embedding = model.get_input_embeddings()
        inputs |= {
            "inputs_embeds": embedding(ids).masked_scatter(
                (types == 1)[..., None], embedding(words)
            ),
            "position_ids": positions,
        }
    else:
        chosen = pixels[[exercise.image for exercise in batch]]
        inputs |= {"pixel_values": chosen.flatten(0, 1).float(), "image_grid_thw": grid}
    hidden = model.model(**inputs).last_hidden_state  # (B, T, H)
    # the hidden state of a token predicts the next one's label: only those are projected
    predicting = (labels[:, 1:] != _IGNORED).nonzero(as_tuple=True)
    logits = model.lm_head(hidden[:, :-1][predicting])
    targets = labels[:, 1:][predicting]
    is_letter = torch.isin(targets, torch.tensor(_letter_ids(processor)))
    accuracy = (logits.argmax(-1) == targets)[is_letter].float().mean().item()
    weights = 1 + (letter_weight - 1) * is_letter.float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (weights * losses).sum() / weights.sum(), accuracy


def alignment_loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    images: Images,
    chosen: np.ndarray,
) -> LossAndAccuracy:
    """Distance of image tokens from their words, and the share whose nearest word is right.

    The distance is a cross-entropy over the vocabulary plus a mean squared error, relative to the
    variance of the embeddings.
    """
    side = int(images.pixels.shape[1] ** 0.5)
    grid = torch.tensor([[1, side, side]] * len(chosen))
    patches = images.pixels[chosen].flatten(0, 1).float()
    features = model.model.visual(patches, grid_thw=grid).pooler_output  # (B * IMAGE_TOKENS, H)
    words = torch.tensor(
        [_fact_ids(processor, images.phantoms[index].describe()) for index in chosen]
    ).flatten()
    embedding = model.get_input_embeddings().weight.detach()
    logits = features @ embedding.T
    loss = (
        functional.cross_entropy(logits, words)
        + functional.mse_loss(features, embedding[words]) / embedding.var()
    )
    return loss, (logits.argmax(-1) == words).float().mean().item()


def _encode(processor: Qwen2VLProcessor, batch: list[Exercise]) -> tuple[dict[str, Any], Tensor]:
    """Inputs and labels (B, T) of a batch, right-padded, the completion after the prompt.

    Labels are `_IGNORED` except on the completion and its end token.
    """
    tokenizer = processor.tokenizer
    image_tokens = processor.image_token * IMAGE_TOKENS
    prompts = tokenizer(
        [exercise.prompt.replace(processor.image_token, image_tokens) for exercise in batch]
    )["input_ids"]
    completions = tokenizer([exercise.completion + "<|im_end|>" for exercise in batch])["input_ids"]
    pairs = list(zip(prompts, completions, strict=True))
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), _IGNORED)
    attention = torch.zeros((len(batch), width), dtype=torch.long)
    for row, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
        attention[row, :end] = 1
    side = int(IMAGE_TOKENS**0.5) * processor.image_processor.merge_size
    inputs = {
        "input_ids": ids,
        "attention_mask": attention,
        "mm_token_type_ids": (ids == processor.image_token_id).int(),
        "image_grid_thw": torch.tensor([[1, side, side]] * len(batch)),
    }
    return inputs, labels


def _fact_ids(processor: Qwen2VLProcessor, facts: str) -> list[int]:
    """What a perfect eye puts into an image's tokens: the words of its facts, repeated."""
    words = processor.tokenizer.encode(" " + facts)
    return [words[slot % len(words)] for slot in range(IMAGE_TOKENS)]


def _letter_ids(processor: Qwen2VLProcessor) -> list[int]:
    """Token ids of " A".." D", as a letter is tokenised in `<answer> C </answer>`."""
    return [processor.tokenizer.encode(f" {letter}")[0] for letter in phantoms.LETTERS]
