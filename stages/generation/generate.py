"""Greedy answers of a policy to many questions, each asked of one image or of several in its place.

The image stands before the words. So what a policy makes of it, keys and values of all its layers,
is computed once in a window of neighbouring questions, however many of them are about it and in
however many variants it takes the place of another; each row then adds its own words and its
answer. Rows of a window go in batches by length, the longest first, so that there is next to no
padding.

All batches follow from the questions and the batch size alone: on a CPU, answers that were
interrupted, or shared among processes, are to the bit those of one run. With another batch size,
sums are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal

import torch
from PIL import Image
from transformers import DynamicCache, PreTrainedModel

from stages.core.errors import InputError
from stages.generation.batch_size import BatchSize
from stages.generation.greedy import COMPACT_BELOW, complete_greedily
from stages.generation.image_loader import Processed, load_images, process
from stages.generation.image_prefill import Prefixes, pass_over_images
from stages.policy.kv_cache import PreallocatedLayer
from stages.policy.last_layer import last_layer_yields
from stages.policy.loading import vision_token_ids
from stages.policy.vision_features import embed_patches_by_product
from stages.prompts.styles import chat

BLANK: Final = ""
"""In place of a path: a black image of the size of the one that is asked about."""

_WINDOW: Final = 256
"""Questions. Of longer windows, what is kept of the images would fill a GPU (6 MB for each in
Qwen2-VL-2B, in two variants), and the last ones of several processes would leave the others
waiting.
"""

Key = tuple[int, str]
"""Place of a question among those asked, and variant."""


@dataclass(frozen=True)
class Question:
    """Words, and variant -> path of the image they are asked of; the first variant's image is the
    question's own.
    """

    words: str
    images: Mapping[str, str]

    @property
    def own(self) -> str:
        """Path of the image it is about."""
        return next(iter(self.images.values()))


@dataclass(frozen=True)
class Completion:
    """What a policy wrote: the text without special tokens, and the ids of its tokens, the end
    token among them.
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Of one batch, and how many rows a batch had at most."""

    completions: dict[Key, Completion]
    batch_size: int


@dataclass(frozen=True)
class _Row:
    """A question and one of its variants: the prefix it continues, and the token ids behind."""

    key: Key
    prefix: int
    words: list[int]


def cut_windows(asked: Sequence[Question], batch_size: int | Literal["auto"]) -> list[range]:
    """Cut the questions into windows of some batches each; those about one image that stand
    together stay together.

    How many processes share the windows does not matter, so that one process may go on where
    several were interrupted.
    """
    least = _WINDOW if batch_size == "auto" else max(batch_size, min(4 * batch_size, _WINDOW))
    windows, start = [], 0
    for place in range(1, len(asked)):
        if place - start >= least and asked[place].own != asked[place - 1].own:
            windows.append(range(start, place))
            start = place
    return [*windows, range(start, len(asked))] if asked else []


def answer_greedily(
    policy: PreTrainedModel,
    processor: Any,
    asked: Sequence[Question],
    *,
    windows: Sequence[range],
    batch_size: BatchSize,
    max_new_tokens: int,
    done: Set[Key] = frozenset(),
    loaders: int = 0,
    leave: float = COMPACT_BELOW,
) -> Iterator[Answers]:
    """Answer the questions of some windows (`cut_windows`), but for what is done, batch after
    batch.

    Questions about the same or neighbouring images should stand together. `loaders`: threads that
    open images ahead of a GPU; with 0 they are opened as they are needed. Tokens that stand for
    images are never generated. Raises InputError naming an image that does not open or a question
    that cannot be asked, and when a GPU's memory does not suffice.
    """
    policy.eval()
    embed_patches_by_product(policy)
    left = [
        window
        for window in windows
        if not done >= {(place, variant) for place in window for variant in asked[place].images}
    ]
    paths = [_paths(asked, window) for window in left]
    answerer = _Answerer(policy, processor, max_new_tokens, batch_size, leave)
    with load_images(processor, policy.dtype, [*chain.from_iterable(paths)], loaders) as stream:
        for window, its_own in zip(left, paths, strict=True):
            yield from answerer.answer(asked, window, its_own, stream, done)


def _paths(asked: Sequence[Question], window: range) -> list[str]:
    """The images that the questions of a window need, each once."""
    return list(
        dict.fromkeys(
            path
            for place in window
            for path in (asked[place].own, *asked[place].images.values())
            if path != BLANK
        )
    )


class _Answerer:
    def __init__(
        self,
        policy: PreTrainedModel,
        processor: Any,
        most: int,
        batch_size: BatchSize,
        leave: float,
    ) -> None:
        self._policy, self._processor, self._most, self._size, self._leave = (
            policy,
            processor,
            most,
            batch_size,
            leave,
        )
        ends = policy.generation_config.eos_token_id
        self._ends = ends if isinstance(ends, list) else [ends]
        self._suppressed = vision_token_ids(processor)

    @torch.inference_mode()
    def answer(
        self,
        asked: Sequence[Question],
        window: range,
        paths: Sequence[str],
        stream: Iterator[Processed],
        done: Set[Key],
    ) -> Iterator[Answers]:
        """Answer one window, whose images come next in the stream."""
        head, words = self._tokenize([asked[place] for place in window])
        numbers: dict[str | tuple[int, int], int] = {}
        sizes: dict[str, tuple[int, int]] = {}

        def needed() -> Iterator[Processed]:
            """The images at the paths, and then a black one of each size that is asked for."""
            for path, image in zip(paths, stream, strict=False):
                numbers[path], sizes[path] = len(numbers), image.size
                yield image
            for place in window:
                size = sizes[asked[place].own]
                if BLANK in asked[place].images.values() and size not in numbers:
                    numbers[size] = len(numbers)
                    yield process(self._processor, Image.new("RGB", size), self._policy.dtype)

        prefixes = pass_over_images(self._policy, self._processor, head, words[0][0], needed())
        rows = [
            _Row(
                (place, variant),
                numbers[sizes[asked[place].own] if path == BLANK else path],
                words[place - window.start],
            )
            for place in window
            for variant, path in asked[place].images.items()
        ]
        rows.sort(key=lambda row: (-prefixes.lengths[row.prefix], -len(row.words)))
        self._size.estimate(self._policy, max(prefixes.lengths), max(map(len, words)), self._most)
        # batches as they would be were nothing done
        for start in range(0, len(rows), size := self._size.rows):
            waiting = [row for row in rows[start : start + size] if row.key not in done]
            while waiting:
                answers = self._try(prefixes, waiting[: self._size.rows])
                if answers is not None:
                    waiting = waiting[len(answers.completions) :]
                    yield answers

    def _try(self, prefixes: Prefixes, rows: Sequence[_Row]) -> Answers | None:
        """The answers of some rows; None if they do not fit, with the batch size halved."""
        try:
            return Answers(
                dict(zip((row.key for row in rows), self._complete(prefixes, rows), strict=True)),
                self._size.rows,
            )
        except torch.OutOfMemoryError as error:
            self._size.halve(error.with_traceback(None))  # which holds what took the memory
        torch.cuda.empty_cache()
        return None

    def _complete(self, prefixes: Prefixes, rows: Sequence[_Row]) -> list[Completion]:
        device, pad = self._policy.device, self._processor.tokenizer.pad_token_id
        picked = torch.tensor([row.prefix for row in rows], device=device)
        before, after = (
            max(prefixes.lengths[row.prefix] for row in rows),
            max(len(row.words) for row in rows),
        )
        layers = [
            PreallocatedLayer.from_prefix(
                keys[picked, :, -before:], values[picked, :, -before:], after + self._most - 1
            )
            for keys, values in prefixes.layers
        ]
        cache = DynamicCache()
        cache.layers = layers
        ids = torch.tensor(
            [[pad] * (after - len(row.words)) + row.words for row in rows], device=device
        )
        lengths = torch.tensor(
            [[prefixes.lengths[row.prefix], len(row.words)] for row in rows], device=device
        )
        seen = torch.arange(before, device=device) >= before - lengths[:, :1]
        real = torch.arange(after, device=device) >= after - lengths[:, 1:]
        causal = torch.ones(after, after, dtype=torch.bool, device=device).tril() & real[:, None, :]
        mask = torch.cat([seen[:, None, :].expand(-1, after, -1), causal], dim=2)[:, None]
        offsets = (torch.arange(after, device=device) - (after - lengths[:, 1:])).clamp(min=0)
        first = prefixes.next[:, picked]
        with last_layer_yields(self._policy, 1):
            logits = self._policy(
                input_ids=ids,
                attention_mask=mask,
                position_ids=first[..., None] + offsets,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        written = complete_greedily(
            self._policy,
            layers,
            torch.cat([seen, real], dim=1),
            first + lengths[:, 1],
            logits,
            max_tokens=self._most,
            ends=self._ends,
            suppressed=self._suppressed,
            leave=self._leave,
        )
        texts = self._processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [Completion(text, tuple(ids)) for text, ids in zip(texts, written, strict=True)]

    def _tokenize(self, questions: Sequence[Question]) -> tuple[list[int], list[list[int]]]:
        """The token ids before the image, the same for all, and those behind it, for each question."""
        texts = [
            self._processor.apply_chat_template(
                chat(each.words), add_generation_prompt=True, tokenize=False
            )
            for each in questions
        ]
        heads, words, token = [], [], self._processor.image_token_id
        for question, ids in zip(
            questions, self._processor.tokenizer(texts)["input_ids"], strict=True
        ):
            if (found := ids.count(token)) != 1:
                raise InputError(
                    f"the question {question.words[:80]!r} has {found} tokens that stand for"
                    f" images, its image needs 1: none may hold {self._processor.image_token}"
                )
            place = ids.index(token)
            heads.append(ids[:place])
            words.append(ids[place + 1 :])
        if any(head != heads[0] for head in heads):
            raise InputError(
                "the model's chat template puts words of the question before its image, which"
                " Med-R1's prompts do not"
            )
        return heads[0], words
