"""Greedy answers of a policy to many questions, each asked of one picture or of several in its place.

A picture is opened, processed and passed through the vision tower once, however many questions are about it and however
many rows it stands in; a question is tokenised once for all the pictures it is asked of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from stages.corpus.store import open_image
from stages.grpo.policy import vision_token_ids
from stages.grpo.prompt_batch import PromptBatch, backbone
from stages.grpo.prompt_pass import pass_over_prompts
from stages.grpo.prompts import chat
from stages.grpo.rollout import Sampling, sample_completions
from stages.grpo.vision import embed_patches_by_product, look, seen_as, takes_features

BLANK: Final = ""
"""In place of a path: a black picture of the size of the one that is asked about."""


@dataclass(frozen=True)
class Question:
    """Words, and variant -> path of the picture they are asked of; the first variant's picture is the question's own."""

    words: str
    pictures: Mapping[str, str]


@dataclass(frozen=True)
class Completion:
    """What a policy wrote: the text without special tokens, and its length in tokens, the end token among them."""

    text: str
    tokens: int


@dataclass(frozen=True)
class _Seen:
    """A picture as the policy takes it: patches and grid (3,), and its features where the tower's can be given."""

    patches: Tensor
    grid: Tensor
    features: Tensor | None
    size: tuple[int, int]


@torch.inference_mode()
def answer_greedily(
    policy: PreTrainedModel, processor: Any, asked: Sequence[Question], *, batch_size: int, max_new_tokens: int
) -> Iterator[list[dict[str, Completion]]]:
    """Answer questions in order: for each, variant -> completion, in lists of `batch_size` questions.

    Questions about the same or neighbouring pictures should stand together: the last few batches' pictures are kept.
    Tokens that stand for pictures are never generated. Raises InputError naming an image that does not open.
    """
    policy.eval()
    embed_patches_by_product(policy)
    ends = policy.generation_config.eos_token_id
    sampling = Sampling(
        max_tokens=max_new_tokens,
        ends=tuple(ends if isinstance(ends, list) else [ends]),
        pad=processor.tokenizer.pad_token_id,
        temperature=0.0,
        suppressed=tuple(vision_token_ids(processor)),
    )
    pictures = _Pictures(policy, processor, 4 * batch_size)
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        texts = [processor.apply_chat_template(chat(each.words), add_generation_prompt=True, tokenize=False) for each in batch]
        answers: list[dict[str, Completion]] = [{} for _ in batch]
        tokenized: dict[tuple[tuple[int, ...], ...], tuple[Tensor, Tensor, Tensor]] = {}
        for variant in dict.fromkeys(name for each in batch for name in each.pictures):
            rows = [row for row, each in enumerate(batch) if variant in each.pictures]
            seen = pictures.of([(batch[row].pictures[variant], next(iter(batch[row].pictures.values()))) for row in rows])
            grids = tuple((rows[index], *each.grid.tolist()) for index, each in enumerate(seen))
            if grids not in tokenized:
                tokenized[grids] = _tokenize(policy, processor, [texts[row] for row in rows], seen)
            for row, completion in zip(rows, _answer(policy, processor, tokenized[grids], seen, sampling), strict=True):
                answers[row][variant] = completion
        yield answers


class _Pictures:
    """Pictures by (path, path of the question's own picture), the latest `limit` of them kept."""

    def __init__(self, policy: PreTrainedModel, processor: Any, limit: int) -> None:
        self._policy, self._processor, self._limit = policy, processor, limit
        self._kept: OrderedDict[tuple[str, tuple[int, int] | None], _Seen] = OrderedDict()

    def of(self, wanted: Sequence[tuple[str, str]]) -> list[_Seen]:
        """What was asked for, those not seen yet looked at together."""
        self._look({(path, None): None for pair in wanted for path in pair if path != BLANK})
        keys = [(path, self._kept[own, None].size if path == BLANK else None) for path, own in wanted]
        self._look(dict.fromkeys(keys))
        seen = [self._kept[key] for key in keys]
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return seen

    def _look(self, keys: Mapping[tuple[str, tuple[int, int] | None], None]) -> None:
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        new = [key for key in keys if key not in self._kept]
        if not new:
            return
        opened = [open_image(path) if size is None else Image.new("RGB", size) for path, size in new]
        fields = self._processor.image_processor(images=opened, return_tensors="pt")
        patches, grids = (fields[name].to(self._policy.device) for name in ("pixel_values", "image_grid_thw"))
        features = look(self._policy, patches, grids) if takes_features(self._policy) else [None] * len(new)
        own = torch.split(patches, grids.prod(-1).tolist())
        for index, (key, picture) in enumerate(zip(new, opened, strict=True)):
            self._kept[key] = _Seen(own[index], grids[index], features[index], picture.size)


def _tokenize(policy: PreTrainedModel, processor: Any, texts: list[str], seen: list[_Seen]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask (B, P), padded on the left, and positions (3, B, P), of texts with a picture each."""
    token, merged = processor.image_token, processor.image_processor.merge_size**2
    expanded = [text.replace(token, token * (int(each.grid.prod()) // merged)) for text, each in zip(texts, seen, strict=True)]
    fields = processor.tokenizer(expanded, padding=True, padding_side="left", return_tensors="pt").to(policy.device)
    ids, mask = fields["input_ids"], fields["attention_mask"]
    kinds = (ids == processor.image_token_id).int()
    grids = torch.stack([each.grid for each in seen])
    positions, _ = backbone(policy).get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=mask)
    return ids, mask, positions


def _answer(
    policy: PreTrainedModel, processor: Any, tokenized: tuple[Tensor, Tensor, Tensor], seen: list[_Seen], sampling: Sampling
) -> list[Completion]:
    patches, grids = torch.cat([each.patches for each in seen]), torch.stack([each.grid for each in seen])
    prompts = PromptBatch(*tokenized, pixel_values=patches, image_grid_thw=grids, images=(1,) * len(seen))
    features = [each.features for each in seen if each.features is not None]
    done = pass_over_prompts(policy, prompts, seen_as(policy, features) if features else prompts.pictures)
    no_draws = torch.zeros(len(prompts), 1, sampling.max_tokens)
    written = sample_completions(policy, prompts, done, no_draws, sampling)
    texts = processor.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Completion(text, len(tokens)) for text, tokens in zip(texts, written, strict=True)]
