"""The images of a question in a source: one, or several in order, and what its text calls them.

Sources mark where an image belongs in a text, "<image 2>". A prompt shows the images before the
text, numbered "Picture 2" if there are several: so the text must call them that, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.images import SEVERAL, check_image_count
from stages.corpus.records.texts import MAX_TEXT_LENGTH, RefusedRecord

_MARK: Final = re.compile(r"<image[\s_]*([0-9]{1,3})>[ \t]*", re.IGNORECASE)
_SENTENCE_ENDS: Final = (".", "?", "!", ":", ";", "\n")

Written = TypeVar("Written")


class NamedImage(NamedTuple):
    """An image and its path below Images/.

    `content` is a file or folder to copy, or the bytes of an image.
    """

    name: str
    content: Path | bytes


def ordered_images(
    written: Sequence[Written],
    find: Callable[[Written], NamedImage],
    names: Sequence[str] = (),
) -> tuple[NamedImage, ...]:
    """The image of each entry of a source's list, in order.

    Raises RefusedRecord for none, too many, or one that is there twice, and the first one of
    `find`, with the name of its image: that of `names`, or its number.
    """
    check_image_count(len(written))
    names = names or [f"image {number} of {SEVERAL}" for number in range(1, len(written) + 1)]
    images: dict[str, NamedImage] = {}
    for name, entry in zip(names, written, strict=True):
        try:
            image = find(entry)
        except RefusedRecord as error:
            if len(written) == 1:
                raise
            raise RefusedRecord(error.what, f"{name}: {error.why}", error.reason) from None
        if image.name in images:
            why = f"{name} is listed before: name each image once"
            raise RefusedRecord(image.name, why, Reason.IMAGE_LIST)
        images[image.name] = image
    return tuple(images.values())


def name_pictures(text: str, numbers: Sequence[int]) -> str:
    """A text that calls images as prompts do, in place of marks such as "<image 2>".

    `numbers`: of the marks, in the order of the question's images. Of several, the second becomes
    "Picture 2". A single one becomes "the image", and is left out beside a sentence, where it only
    said that the image belongs there. Raises RefusedRecord for a mark of no image.
    """
    if len(text) > MAX_TEXT_LENGTH or not _MARK.search(text):
        return text  # too long a text is refused later
    named = _MARK.sub(partial(_picture, numbers=numbers), text)
    return named if named.strip() else "the image"


def _picture(mark: re.Match[str], numbers: Sequence[int]) -> str:
    """What stands in place of a mark and the blanks behind it."""
    number = int(mark[1])
    if number not in numbers:
        why = f"a mark in the text names an image that the question lacks: it has {len(numbers)}"
        raise RefusedRecord(mark[0].strip(), why, Reason.IMAGE_LIST)
    before = mark.string[: mark.start()]
    behind = mark.string[mark.end() :]
    blanks = mark[0].partition(">")[2]
    if not blanks and (behind[:1].isalnum() or behind.startswith("<")):
        blanks = " "
    apart = " " if before[-1:].isalnum() else ""
    if len(numbers) > 1:
        return f"{apart}Picture {numbers.index(number) + 1}{blanks}"
    begun = before.rstrip(" \t")
    if begun and not begun.endswith(_SENTENCE_ENDS):
        return f"{apart}the image{blanks}"
    ends = not behind or behind.startswith(("\r", "\n")) or behind[0].isupper()
    return "" if ends else f"The image{blanks}"
