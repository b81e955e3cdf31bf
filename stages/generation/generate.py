"""Greedy answers to many questions, each about one image or several variants of it.

The image stands before the question, so its keys and values do not depend on the question: they are
computed once per window of neighbouring questions, however many questions and variants use it. Each
row then adds its own question and its answer. The rows of a window are batched by length, longest
first, so there is almost no padding.

Batches follow from the window and the batch size alone: on a CPU, answers that were interrupted,
split over processes or taken from an earlier evaluation are bit-identical to those of one run.
Another batch size changes the order in which sums are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stages.core.errors import InputError
from stages.generation.batch_size import BatchSize
from stages.generation.image_loader import ProcessedImage, load_images, process_image
from stages.generation.image_prefill import Prefixes, prefill_images
from stages.generation.separate_rows import SeparateRows
from stages.generation.windows import BLANK, Key, Question, Window
from stages.policy.decoding import COMPACT_BELOW, Decoder, Sampling, decode
from stages.policy.kv_cache import PreallocatedLayer
from stages.policy.last_layer import narrow_last_layer
from stages.policy.loading import vision_token_ids
from stages.policy.masks import additive
from stages.policy.vision_features import embed_patches_by_product
from stages.prompts.styles import chat


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
class _Row:
    """One variant of a question: index of its prefix in `Prefixes`, and the token ids after it.

    The suffix is the question and the end of the chat template.
    """

    key: Key
    prefix_index: int
    suffix: list[int]


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
    paths = [_image_paths(questions, window) for window in windows]
    answerer = _Answerer(policy, processor, max_new_tokens, batch_size, compact_below)
    all_paths = list(chain.from_iterable(paths))
    with load_images(processor, policy.dtype, all_paths, loader_threads) as stream:
        for window, window_paths in zip(windows, paths, strict=True):
            yield answerer.answer(questions, window, window_paths, stream)


def _image_paths(questions: Sequence[Question], window: Window) -> list[str]:
    """The distinct images that the questions of a window need, in order."""
    paths: dict[str, None] = {}
    for index in window:
        paths |= dict.fromkeys(questions[index].images.values())
    paths.pop(BLANK, None)
    return list(paths)


class _WindowImages:
    """Images of a window, numbered as they are iterated over: those at its paths, then black ones.

    There is one black image per size that a blank variant needs. Takes `len(paths)` images from
    `stream`, which continues with the next window.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        paths: Sequence[str],
        stream: Iterator[ProcessedImage],
        black_image: Callable[[tuple[int, int]], ProcessedImage],
    ) -> None:
        self._questions = questions
        self._paths = paths
        self._stream = stream
        self._black_image = black_image
        self._numbers: dict[str | tuple[int, int], int] = {}  # by path; black ones by size
        self._sizes: dict[str, tuple[int, int]] = {}

    def __iter__(self) -> Iterator[ProcessedImage]:
        # paths come first: zip must end before it takes the next window's first image
        for path, image in zip(self._paths, self._stream, strict=False):
            self._numbers[path] = len(self._numbers)
            self._sizes[path] = image.size
            yield image
        for question in self._questions:
            size = self._sizes[question.own_image]
            if BLANK in question.images.values() and size not in self._numbers:
                self._numbers[size] = len(self._numbers)
                yield self._black_image(size)

    def number(self, question: Question, path: str) -> int:
        return self._numbers[self._sizes[question.own_image] if path == BLANK else path]


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
        self._batch_size = batch_size
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
    def answer(
        self,
        questions: Sequence[Question],
        window: Window,
        paths: Sequence[str],
        stream: Iterator[ProcessedImage],
    ) -> Answers:
        """Answer one window, whose images come next in the stream."""
        own = [questions[index] for index in window]
        head, suffixes = self._tokenize(own)
        images = _WindowImages(own, paths, stream, self._black_image)
        prefixes = prefill_images(self._policy, self._processor, head, suffixes[0][0], images)
        rows = []
        for index, question, ids in zip(window, own, suffixes, strict=True):
            for variant, path in question.images.items():
                rows.append(_Row((index, variant), images.number(question, path), ids))
        # longest first: little padding, and a batch that does not fit in memory fails at once
        rows.sort(key=lambda row: (-prefixes.lengths[row.prefix_index], -len(row.suffix)))
        self._batch_size.estimate(
            self._policy, max(prefixes.lengths), max(map(len, suffixes)), self._max_new_tokens
        )
        return self._answer_rows(head, prefixes, rows)

    def _answer_rows(
        self, head: Sequence[int], prefixes: Prefixes, rows: Sequence[_Row]
    ) -> Answers:
        """Answer rows in batches, whose size is halved where one does not fit in memory."""
        completions: dict[Key, Completion] = {}
        sizes = set()
        while len(completions) < len(rows):
            size = self._batch_size.rows
            batch = rows[len(completions) : len(completions) + size]
            try:
                answers = self._complete(head, prefixes, batch)
            except torch.OutOfMemoryError as error:
                # the frames of its traceback hold the tensors that took the memory
                self._batch_size.halve(error.with_traceback(None))
            else:
                completions |= dict(zip((row.key for row in batch), answers, strict=True))
                sizes.add(size)
                continue
            torch.cuda.empty_cache()
        return Answers(completions, sorted(sizes))

    def _complete(
        self, head: Sequence[int], prefixes: Prefixes, rows: Sequence[_Row]
    ) -> list[Completion]:
        """Complete B rows, whose prefixes take P columns and whose suffixes take W.

        `head`: the token ids before the image, which all prefixes share.
        """
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
        completion_ids = self._decode(decoder, logits, self._prompt_ids(head, rows))
        texts = self._processor.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return [
            Completion(text, tuple(ids)) for text, ids in zip(texts, completion_ids, strict=True)
        ]

    def _decode(self, decoder: Decoder, logits: Tensor, prompt_ids: Tensor) -> list[list[int]]:
        """Greedy completions of B rows, whose first tokens have the `logits` (B, V)."""
        sampling = self._sampling
        scores = sampling.warpers()(prompt_ids, logits.float())
        unused = torch.zeros(len(logits), sampling.max_tokens, device=logits.device)
        first = sampling.choose(scores, unused[:, :1]).tolist()
        completions, _ = decode(
            decoder, first, prompt_ids, unused, sampling, compact_below=self._compact_below
        )
        return completions

    def _prompt_ids(self, head: Sequence[int], rows: Sequence[_Row]) -> Tensor:
        """The tokens of the prompts (B, L), each kind once, for the repetition penalty."""
        image_token = self._processor.image_token_id
        ids = [[*head, image_token, *row.suffix] for row in rows]
        longest = max(map(len, ids))
        # padded with a token of the row: one that stands there twice is penalised once
        padded = [[*each, *repeat(each[0], longest - len(each))] for each in ids]
        return torch.tensor(padded, device=self._policy.device)

    def _black_image(self, size: tuple[int, int]) -> ProcessedImage:
        return process_image(self._processor, Image.new("RGB", size), self._policy.dtype)

    def _tokenize(self, questions: Sequence[Question]) -> tuple[list[int], list[list[int]]]:
        """Token ids before the image, the same for all questions, and those after it, for each."""
        texts = [
            self._processor.apply_chat_template(
                chat(question.text), add_generation_prompt=True, tokenize=False
            )
            for question in questions
        ]
        image_token = self._processor.image_token_id
        heads = []
        suffixes = []
        all_ids = self._processor.tokenizer(texts)["input_ids"]
        for question, ids in zip(questions, all_ids, strict=True):
            count = ids.count(image_token)
            if count != 1:
                raise InputError(
                    f"the question {question.text[:80]!r} has {count} image tokens, expected 1:"
                    f" remove {self._processor.image_token} from its text"
                )
            at = ids.index(image_token)
            heads.append(ids[:at])
            suffixes.append(ids[at + 1 :])
        if any(head != heads[0] for head in heads):
            raise InputError(
                "the model's chat template puts words of the question before the image, which is"
                " not supported: the image must come first"
            )
        return heads[0], suffixes


def _right_aligned(lengths: Iterable[int], width: int, device: torch.device) -> Tensor:
    """Boolean (B, width), true in the last `length` columns of each row."""
    starts = width - torch.tensor(list(lengths), device=device)
    return torch.arange(width, device=device) >= starts[:, None]
