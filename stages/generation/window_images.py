"""The rows of a window, and its images: each is opened once, however many rows show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from stages.core.errors import InputError
from stages.generation.image_loader import ProcessedImage
from stages.generation.windows import BLANK, Key, Question, Variant, Window, shown_by, size_class

Size = tuple[int, int]
"""Width and height in pixels."""

Shown = tuple[str | Size, ...]
"""What stands before the words of a row: paths of images, and sizes of black ones."""


@dataclass(frozen=True)
class Row:
    """One variant of a question, which has `own` images."""

    key: Key
    variant: Variant
    own: tuple[str, ...]

    @property
    def needs_black(self) -> bool:
        """Whether one of its images is black."""
        return BLANK in self.variant.images


def group_rows(questions: Sequence[Question], window: Window) -> list[list[Row]]:
    """The rows of a window by `size_class`, those with most images first; else in order."""
    groups: dict[int, list[Row]] = {}
    for index in window:
        own = questions[index].own_images
        for name, variant in questions[index].variants.items():
            row = Row((index, name), variant, own)
            groups.setdefault(size_class(variant.images), []).append(row)
    return [group for _, group in sorted(groups.items(), reverse=True)]


def paths_in_order(groups: Sequence[Sequence[Row]]) -> list[str]:
    """The distinct images that the rows need from files, in the order in which they come up."""
    sequences = chain.from_iterable(map(_sequences_from_files, groups))
    return list(dict.fromkeys(chain.from_iterable(sequences)))


def _sequences_from_files(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The distinct sequences of images without a black one, in order."""
    return list(dict.fromkeys(row.variant.images for row in rows if not row.needs_black))


class WindowImages:
    """Images of a window: taken from `stream`, and kept until the last sequence that has them.

    Takes the images at `paths_in_order` from the stream, which continues with the next window.
    There is one black image per size that a group needs.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Row]],
        stream: Iterator[ProcessedImage],
        black_image: Callable[[Size], ProcessedImage],
    ) -> None:
        self._stream = stream
        self._black_image = black_image
        self._sizes: dict[str, Size] = {}
        self._kept: dict[str | Size, ProcessedImage] = {}
        self._remaining_uses: Counter[str | Size] = Counter()
        for group in groups:
            self._remaining_uses.update(chain.from_iterable(_sequences_from_files(group)))

    def sequences(self, rows: Sequence[Row]) -> Iterator[tuple[Shown, list[ProcessedImage]]]:
        """The distinct sequences that the rows of a group show: of files, then with black images.

        Raises InputError naming an image that does not open, and a question that shows it.
        """
        for paths in _sequences_from_files(rows):
            yield paths, [self._take(path, rows) for path in paths]
        with_black = dict.fromkeys(self.shown(row) for row in rows if row.needs_black)
        self._remaining_uses.update(chain.from_iterable(with_black))
        for shown in with_black:
            yield shown, [self._take(each, rows) for each in shown]

    def shown(self, row: Row) -> Shown:
        """What a row shows, once the images of its question have been taken."""
        return tuple(
            self._sizes[row.own[place]] if path == BLANK else path
            for place, path in enumerate(row.variant.images)
        )

    def _take(self, image: str | Size, rows: Sequence[Row]) -> ProcessedImage:
        self._remaining_uses[image] -= 1
        if image not in self._kept:
            self._kept[image] = self._open(image, rows)
        return self._kept[image] if self._remaining_uses[image] > 0 else self._kept.pop(image)

    def _open(self, image: str | Size, rows: Sequence[Row]) -> ProcessedImage:
        if not isinstance(image, str):
            return self._black_image(image)
        try:
            opened = next(self._stream)
        except InputError as error:
            variant = next(row.variant for row in rows if image in row.variant.images)
            raise shown_by(variant, error) from error
        self._sizes[image] = opened.size
        return opened
