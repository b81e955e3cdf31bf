"""Greedy answers to many questions, each in several variants of its images and words.

The images stand before the question, so their keys and values do not depend on it: each distinct
sequence of images is computed once per window of neighbouring questions, however many questions and
variants use it. Each row then adds its own question and its answer. The rows of a window are
batched by length, longest first, so there is almost no padding; rows whose numbers of images differ
much (`size_class`) share no batch.

Batches follow from the window and the batch size alone: on a CPU, answers that were interrupted,
split over processes or taken from an earlier evaluation are bit-identical to those of one run.
Another batch size changes the order in which sums are rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stages.generation.batch_size import BatchSize
from stages.generation.chat_tokens import ChatTokens, tokenize_chats
from stages.generation.image_loader import ProcessedImage, load_images, process_image
from stages.generation.image_prefill import Prefixes, prefill_images
from stages.generation.separate_rows import SeparateRows
from stages.generation.window_images import (
    Row,
    Shown,
    WindowImages,
    group_rows,
    paths_in_order,
)
from stages.generation.windows import Key, Question, Window, size_class
from stages.policy.decoding import COMPACT_BELOW, Decoder, Sampling, decode
from stages.policy.kv_cache import PreallocatedLayer
from stages.policy.last_layer import narrow_last_layer
from stages.policy.loading import vision_token_ids
from stages.policy.masks import additive
from stages.policy.vision_features import embed_patches_by_product


@dataclass(frozen=True)
class Completion:
    """A completion: its text without special tokens, and its token ids, end token included."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Completions of a window, and the sorted batch sizes in force (most rows per batch)."""

    completions: dict[Key, Completion]
    batch_sizes: list[int]


@dataclass(frozen=True)
class _Prompt:
    """A row to answer: index of its prefix in `Prefixes`, and its token ids.

    `suffix`: the question and the end of the chat template; `penalized_ids`: what the repetition
    penalty needs of the whole prompt, each distinct token at least once.
    """

    key: Key
    prefix_index: int
    suffix: list[int]
    penalized_ids: list[int]


def answer_greedily(
    policy: PreTrainedModel,
    processor: Any,
    questions: Sequence[Question],
    *,
    windows: Sequence[Window],
    batch_size: BatchSize,
    max_new_tokens: int,
    loader_threads: int = 0,
    compact_below: float = COMPACT_BELOW,
) -> Iterator[Answers]:
    """Answer the questions of some windows (`cut_windows`), window by window.

    `loader_threads`: threads that open images ahead of the GPU; 0 opens each when it is needed.
    Tokens that stand for images are never generated. Puts the policy into eval mode and replaces
    its patch convolution (`embed_patches_by_product`). Raises InputError for an image that does not
    open, for a question with an image token, and if GPU memory does not suffice for the smallest
    batch.
    """
    policy.eval()
    embed_patches_by_product(policy)
    groups = [group_rows(questions, window) for window in windows]
    answerer = _Answerer(policy, processor, max_new_tokens, batch_size, compact_below)
    paths = list(chain.from_iterable(map(paths_in_order, groups)))
    with load_images(processor, policy.dtype, paths, loader_threads) as stream:
        for window_groups in groups:
            yield answerer.answer(window_groups, stream)


class _Answerer:
    def __init__(
        self,
        policy: PreTrainedModel,
        processor: Any,
        max_new_tokens: int,
        batch_size: BatchSize,
        compact_below: float,
    ) -> None:
        self._policy = policy
        self._processor = processor
        self._max_new_tokens = max_new_tokens
        # what fits is found for each number of images (`size_class`) by itself
        self._untried = copy(batch_size)
        self._batch_sizes = {0: batch_size}
        self._compact_below = compact_below
        eos = policy.generation_config.eos_token_id
        self._sampling = Sampling(
            max_tokens=max_new_tokens,
            eos_ids=tuple(eos if isinstance(eos, list) else [eos]),
            pad=processor.tokenizer.pad_token_id,
            temperature=0.0,
            suppressed=tuple(vision_token_ids(processor)),
            repetition_penalty=policy.generation_config.repetition_penalty or 1.0,
        )

    @torch.inference_mode()
    def answer(self, groups: Sequence[Sequence[Row]], stream: Iterator[ProcessedImage]) -> Answers:
        """Answer one window (`group_rows`), whose images come next in the stream."""
        chats = tokenize_chats(
            self._processor, [row.variant for row in chain.from_iterable(groups)]
        )
        images = WindowImages(groups, stream, self._black_image)
        completions: dict[Key, Completion] = {}
        sizes: set[int] = set()
        for rows in groups:
            answers = self._answer_group(rows, images, chats)
            completions |= answers.completions
            sizes.update(answers.batch_sizes)
        return Answers(completions, sorted(sizes))

    def _answer_group(
        self, rows: Sequence[Row], images: WindowImages, chats: ChatTokens
    ) -> Answers:
        """Answer rows of one size class."""
        indices: dict[Shown, int] = {}

        def sequences() -> Iterator[list[ProcessedImage]]:
            for shown, sequence in images.sequences(rows):
                indices[shown] = len(indices)
                yield sequence

        follower = chats.suffix(rows[0].variant)[0]
        prefixes = prefill_images(self._policy, self._processor, chats, follower, sequences())
        prompts = [self._prompt(row, indices[images.shown(row)], chats) for row in rows]
        # longest first: little padding, and a batch that does not fit in memory fails at once
        prompts.sort(key=lambda each: (-prefixes.lengths[each.prefix_index], -len(each.suffix)))
        group = size_class(rows[0].variant.images)
        batch_size = self._batch_sizes.setdefault(group, copy(self._untried))
        batch_size.estimate(
            self._policy,
            max(prefixes.lengths),
            max(len(each.suffix) for each in prompts),
            self._max_new_tokens,
        )
        return self._answer_prompts(prefixes, prompts, batch_size)

    def _prompt(self, row: Row, prefix_index: int, chats: ChatTokens) -> _Prompt:
        suffix = chats.suffix(row.variant)
        image = [self._processor.image_token_id]
        before = chats.with_images([image] * len(row.variant.images))
        return _Prompt(row.key, prefix_index, suffix, [*before, *suffix])

    def _answer_prompts(
        self, prefixes: Prefixes, prompts: Sequence[_Prompt], batch_size: BatchSize
    ) -> Answers:
        """Answer prompts in batches, whose size is halved where one does not fit in memory."""
        completions: dict[Key, Completion] = {}
        sizes = set()
        while len(completions) < len(prompts):
            size = batch_size.rows
            batch = prompts[len(completions) : len(completions) + size]
            try:
                answers = self._complete(prefixes, batch)
            except torch.OutOfMemoryError as error:
                # the frames of its traceback hold the tensors that took the memory
                batch_size.halve(error.with_traceback(None))
            else:
                completions |= dict(zip((each.key for each in batch), answers, strict=True))
                sizes.add(size)
                continue
            torch.cuda.empty_cache()
        return Answers(completions, sorted(sizes))

    def _complete(self, prefixes: Prefixes, rows: Sequence[_Prompt]) -> list[Completion]:
        """Complete B rows, whose prefixes take P columns and whose suffixes take W."""
        device = self._policy.device
        selected = torch.tensor([row.prefix_index for row in rows], device=device)  # (B,) of the U
        prefix_lengths = [prefixes.lengths[row.prefix_index] for row in rows]
        suffix_lengths = [len(row.suffix) for row in rows]
        prefix_width = max(prefix_lengths)
        suffix_width = max(suffix_lengths)
        # prefixes are left-padded: their last P columns hold the longest one of this batch
        layers = [
            PreallocatedLayer.from_prefix(
                keys[selected, :, -prefix_width:],
                values[selected, :, -prefix_width:],
                suffix_width + self._max_new_tokens - 1,
            )
            for keys, values in prefixes.layers
        ]
        cache = DynamicCache()
        cache.layers = layers
        pad = self._processor.tokenizer.pad_token_id
        ids = torch.tensor(
            [[pad] * (suffix_width - len(row.suffix)) + row.suffix for row in rows], device=device
        )
        in_prefix = _right_aligned(prefix_lengths, prefix_width, device)  # (B, P)
        in_suffix = _right_aligned(suffix_lengths, suffix_width, device)  # (B, W)
        # (B, W, P + W); padding queries see the prefix, so no softmax is over nothing
        causal = torch.ones(suffix_width, suffix_width, dtype=torch.bool, device=device).tril()
        mask = torch.cat(
            [
                in_prefix[:, None, :].expand(-1, suffix_width, -1),
                causal & in_suffix[:, None, :],
            ],
            dim=2,
        )
        # (B, W): 0 at the first suffix token, and at the padding before it
        lengths = torch.tensor(suffix_lengths, device=device)
        columns = torch.arange(suffix_width, device=device)
        offsets = (columns - (suffix_width - lengths[:, None])).clamp(min=0)
        first_positions = prefixes.next_positions[:, selected]  # (3, B)
        with narrow_last_layer(self._policy, 1):
            logits = self._policy(
                input_ids=ids,
                attention_mask=additive(mask[:, None], self._policy),
                position_ids=first_positions[..., None] + offsets,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        decoder = SeparateRows(
            self._policy,
            layers,
            torch.cat([in_prefix, in_suffix], dim=1),
            first_positions + lengths,
            self._max_new_tokens,
        )
        completion_ids = self._decode(decoder, logits, self._prompt_ids(rows))
        texts = self._processor.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [
            Completion(text, tuple(ids)) for text, ids in zip(texts, completion_ids, strict=True)
        ]

    def _decode(self, decoder: Decoder, logits: Tensor, prompt_ids: Tensor) -> list[list[int]]:
        """Greedy completions of B rows, whose first tokens have the `logits` (B, V)."""
        sampling = self._sampling
        scores = sampling.warpers(logits.device)(prompt_ids, logits.float())
        unused = torch.zeros(len(logits), sampling.max_tokens, device=logits.device)
        first = sampling.choose(scores, unused[:, :1]).tolist()
        completions, _ = decode(
            decoder, first, prompt_ids, unused, sampling, compact_below=self._compact_below
        )
        return completions

    def _prompt_ids(self, rows: Sequence[_Prompt]) -> Tensor:
        """The tokens of the prompts (B, L), for the repetition penalty."""
        longest = max(len(row.penalized_ids) for row in rows)
        # padded with a token of the row: one that stands there twice is penalised once
        padded = [
            [*row.penalized_ids, *repeat(row.penalized_ids[0], longest - len(row.penalized_ids))]
            for row in rows
        ]
        return torch.tensor(padded, device=self._policy.device)

    def _black_image(self, size: tuple[int, int]) -> ProcessedImage:
        return process_image(self._processor, Image.new("RGB", size), self._policy.dtype)


def _right_aligned(lengths: Iterable[int], width: int, device: torch.device) -> Tensor:
    """Boolean (B, width), true in the last `length` columns of each row."""
    starts = width - torch.tensor(list(lengths), device=device)
    return torch.arange(width, device=device) >= starts[:, None]
