"""Windows: the questions that are answered together, as units that evaluations can share.

How sums are rounded depends on which rows share a batch, so an answer is reused only together with
its whole window. A window is therefore cut by a hash of its images' paths, not by position: a
question that is added or removed changes its own window, which may be split or joined with the one
beside it, and leaves the others as they were.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Final, NamedTuple

from stages.core.errors import InputError

BLANK: Final = ""
"""Instead of a path: a black image of the size of the question's own image in this place."""

_MAX_ROWS: Final = 1024
"""Rows per window, and images that its rows show, unless a batch or one question has more.

The KV caches of longer windows would fill a GPU (6 MB per image in Qwen2-VL-2B), and the last
windows of several processes would leave the other processes idle.
"""
_BATCHES: Final = 2
"""Batches per window, at most, below `_MAX_ROWS`: few, so that a new question costs little."""

Key = tuple[int, str]
"""Index of a question, and variant."""

Window = tuple[int, ...]
"""Indices of questions, in the order in which they are answered."""


class Variant(NamedTuple):
    """What is asked: the words, and the paths of the images before them, in order."""

    text: str
    images: tuple[str, ...]


def shown_by(variant: Variant, error: InputError) -> InputError:
    """An error about an image of a variant, with the beginning of its words added."""
    return InputError(f"{error} (an image of the question {variant.text[:80]!r})")


@dataclass(frozen=True)
class Question:
    """Name -> variant of a question; the first is the question itself, about its own images.

    Questions of different `group`s share no window: variants exchange images within a group.
    """

    variants: Mapping[str, Variant]
    group: str = ""

    @property
    def text(self) -> str:
        """The words of the question itself."""
        return next(iter(self.variants.values())).text

    @property
    def own_images(self) -> tuple[str, ...]:
        """Paths of the images the question is about, in order."""
        return next(iter(self.variants.values())).images


def images_rank(images: Sequence[str]) -> bytes:
    """Sort key of images: a hash of their paths, unrelated to names and machine-independent."""
    return hashlib.sha256("\0".join(images).encode()).digest()


def size_class(images: Sequence[str]) -> int:
    """0 for one image, 1 for 2, 2 for 3 and 4, 3 for 5 to 8, and so on.

    Rows of one class are about as long, so they need about as much memory and little padding.
    """
    return (len(images) - 1).bit_length()


def cut_windows(questions: Sequence[Question], batch_rows: int) -> list[Window]:
    """Windows of at most two batches of `batch_rows` rows; one has more if one image has.

    A row is a question in one of its variants. Questions about the same images are neighbours in
    one window, and so are images whose ranks are adjacent; questions about one image share no
    window with questions about several. Windows depend on neither the order of the questions nor
    the number of processes.
    """
    max_rows = max(batch_rows, min(_BATCHES * batch_rows, _MAX_ROWS))
    groups: dict[tuple[str, int], dict[bytes, list[int]]] = {}
    for index, question in enumerate(questions):
        images = question.own_images
        by_images = groups.setdefault((question.group, size_class(images)), {})
        by_images.setdefault(images_rank(images), []).append(index)
    windows: list[Window] = []
    for _, by_images in sorted(groups.items()):
        ranks = sorted(by_images)
        indices = [sorted(by_images[rank], key=partial(_order, questions)) for rank in ranks]
        fits = _size_check(
            [_rows_and_images([questions[index] for index in each]) for each in indices],
            max_rows,
            max(max_rows, _MAX_ROWS),
        )
        windows += [
            tuple(chain.from_iterable(indices[part.start : part.stop]))
            for part in _split_by_bits(ranks, range(len(ranks)), 0, fits)
        ]
    return windows


def _order(
    questions: Sequence[Question], index: int
) -> tuple[str, list[tuple[str, tuple[str, ...]]], list[str]]:
    """Sort key among questions about the same images."""
    variants = questions[index].variants
    return (
        questions[index].text,
        [(name, variant.images) for name, variant in variants.items()],
        [variant.text for variant in variants.values()],
    )


def _rows_and_images(questions: Sequence[Question]) -> tuple[int, int]:
    """Rows of questions about the same images, and the images of their distinct sequences."""
    shown: set[tuple[str, ...]] = set()
    rows = 0
    for question in questions:
        rows += len(question.variants)
        shown |= {variant.images for variant in question.variants.values()}
    return rows, sum(map(len, shown))


def _size_check(
    sizes: Sequence[tuple[int, int]], max_rows: int, max_images: int
) -> Callable[[range], bool]:
    """A test whether a part of the `sizes` (rows, images) is small enough for one window."""
    rows = [0, *accumulate(each for each, _ in sizes)]
    images = [0, *accumulate(each for _, each in sizes)]

    def fits(part: range) -> bool:
        return (
            rows[part.stop] - rows[part.start] <= max_rows
            and images[part.stop] - images[part.start] <= max_images
        )

    return fits


def _split_by_bits(
    ranks: Sequence[bytes], part: range, bit: int, fits: Callable[[range], bool]
) -> Iterator[range]:
    """Halve the range of ranks, bit by bit, until each part fits or has one rank only.

    All ranks of `part`, which are sorted, agree in their first `bit` bits.
    """
    if len(part) < 2 or fits(part):
        if part:
            yield part
        return
    middle = bisect_left(
        ranks, 1, part.start, part.stop, key=lambda rank: rank[bit // 8] >> (7 - bit % 8) & 1
    )
    yield from _split_by_bits(ranks, range(part.start, middle), bit + 1, fits)
    yield from _split_by_bits(ranks, range(middle, part.stop), bit + 1, fits)


def row_keys(questions: Sequence[Question], window: Window) -> list[Key]:
    """The rows of a window: each question in each of its variants."""
    keys: list[Key] = []
    for index in window:
        keys += [(index, name) for name in questions[index].variants]
    return keys
