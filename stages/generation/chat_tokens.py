"""Token ids of chats, cut at their images: what stands before the last one can be shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.errors import InputError
from stages.generation.windows import Variant
from stages.prompts.styles import chat


@dataclass(frozen=True)
class ChatTokens:
    """Token ids of some variants' chats, without the tokens of their images.

    `before`: number of images -> the ids before each image, which all chats with as many share;
    `suffixes`: (words, number of images) -> the ids after the last image.
    """

    before: dict[int, list[list[int]]]
    suffixes: dict[tuple[str, int], list[int]]

    def suffix(self, variant: Variant) -> list[int]:
        """The ids behind the last image: the question and the end of the chat template."""
        return self.suffixes[variant.text, len(variant.images)]

    def with_images(self, images: Sequence[Sequence[int]]) -> list[int]:
        """The ids before the suffix, given those of each image."""
        ids: list[int] = []
        for words, image in zip(self.before[len(images)], images, strict=True):
            ids += [*words, *image]
        return ids


def tokenize_chats(processor: Any, variants: Sequence[Variant]) -> ChatTokens:
    """Tokenise the chats of some variants, each distinct one once.

    Raises InputError, with the beginning of the words, if they contain an image token, and if the
    chat template does not put all images before the words.
    """
    keys = list(dict.fromkeys((each.text, len(each.images)) for each in variants))
    texts = [
        processor.apply_chat_template(
            chat(words, images), add_generation_prompt=True, tokenize=False
        )
        for words, images in keys
    ]
    before: dict[int, list[list[int]]] = {}
    suffixes: dict[tuple[str, int], list[int]] = {}
    for (words, images), ids in zip(keys, processor.tokenizer(texts)["input_ids"], strict=True):
        parts = _split(ids, processor.image_token_id)
        _check_count(processor, words, images, len(parts) - 1)
        suffixes[words, images] = parts.pop()
        if parts != before.setdefault(images, parts):
            raise InputError(
                "the model's chat template puts words of the question before the image, which is"
                " not supported: the image must come first"
            )
    return ChatTokens(before, suffixes)


def _split(ids: Sequence[int], separator: int) -> list[list[int]]:
    """The parts of a list between the separators: one more than there are separators."""
    parts: list[list[int]] = [[]]
    for each in ids:
        if each == separator:
            parts.append([])
        else:
            parts[-1].append(each)
    return parts


def _check_count(processor: Any, words: str, expected: int, found: int) -> None:
    if found == expected:
        return
    token = processor.image_token
    remedy = f"remove {token} from its text and context"
    if token not in words:
        remedy = "the model's chat template must put one for each image of a message"
    raise InputError(
        f"the question {words[:80]!r} has {found} image tokens, expected {expected}: {remedy}"
    )
