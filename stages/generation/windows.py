"""Windows: the questions that are answered together, as units that evaluations can share.

How sums are rounded depends on which rows share a batch, so an answer is reused only together with
its whole window. A window is therefore cut by a hash of its images' paths, not by position: a
question that is added or removed changes its own window, which may be split or joined with the one
beside it, and leaves the others as they were.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

BLANK: Final = ""
"""Instead of a path: a black image of the size of the question's own image."""

_MAX_ROWS: Final = 1024
"""Rows per window, unless a batch or one image has more.

The KV caches of longer windows would fill a GPU (6 MB per image in Qwen2-VL-2B), and the last
windows of several processes would leave the other processes idle.
"""
_BATCHES: Final = 2
"""Batches per window, at most, below `_MAX_ROWS`: few, so that a new question costs little."""

Key = tuple[int, str]
"""Index of a question, and variant."""

Window = tuple[int, ...]
"""Indices of questions, in the order in which they are answered."""


@dataclass(frozen=True)
class Question:
    """The text of a question, and variant -> path of its image; the first is its own image.

    Questions of different `group`s share no window: variants exchange images within a group.
    """

    text: str
    images: Mapping[str, str]
    group: str = ""

    @property
    def own_image(self) -> str:
        """Path of the image the question is about."""
        return next(iter(self.images.values()))


def image_rank(path: str) -> bytes:
    """Sort key of an image: a hash of its path, unrelated to names and machine-independent."""
    return hashlib.sha256(path.encode()).digest()


def cut_windows(questions: Sequence[Question], batch_rows: int) -> list[Window]:
    """Windows of at most two batches of `batch_rows` rows; one has more if one image has.

    A row is a question in one of its variants. Questions about one image are neighbours in one
    window, and so are images whose ranks are adjacent. Windows depend on neither the order of the
    questions nor the number of processes.
    """
    max_rows = max(batch_rows, min(_BATCHES * batch_rows, _MAX_ROWS))
    by_group: dict[str, dict[bytes, list[int]]] = {}
    for index, question in enumerate(questions):
        by_image = by_group.setdefault(question.group, {})
        by_image.setdefault(image_rank(question.own_image), []).append(index)
    windows: list[Window] = []
    for _, by_image in sorted(by_group.items()):
        ranks = sorted(by_image)
        images = [sorted(by_image[rank], key=partial(_order, questions)) for rank in ranks]
        rows = [sum(len(questions[index].images) for index in indices) for indices in images]
        windows += [
            tuple(chain.from_iterable(images[part.start : part.stop]))
            for part in _split_by_bits(ranks, rows, range(len(ranks)), 0, max_rows)
        ]
    return windows


def _order(questions: Sequence[Question], index: int) -> tuple[str, list[tuple[str, str]]]:
    """Sort key among questions about one image."""
    return questions[index].text, list(questions[index].images.items())


def _split_by_bits(
    ranks: Sequence[bytes], rows: Sequence[int], part: range, bit: int, max_rows: int
) -> Iterator[range]:
    """Halve the range of ranks, bit by bit, until each part has at most `max_rows` rows.

    All ranks of `part`, which are sorted, agree in their first `bit` bits.
    """
    if len(part) < 2 or sum(rows[at] for at in part) <= max_rows:
        if part:
            yield part
        return
    middle = bisect_left(
        ranks, 1, part.start, part.stop, key=lambda rank: rank[bit // 8] >> (7 - bit % 8) & 1
    )
    yield from _split_by_bits(ranks, rows, range(part.start, middle), bit + 1, max_rows)
    yield from _split_by_bits(ranks, rows, range(middle, part.stop), bit + 1, max_rows)


def row_keys(questions: Sequence[Question], window: Window) -> list[Key]:
    """The rows of a window: each question in each of its variants."""
    keys: list[Key] = []
    for index in window:
        keys += [(index, variant) for variant in questions[index].images]
    return keys
