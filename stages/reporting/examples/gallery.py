"""Thumbnails for the report page, inlined as data URLs: single images, and strips of several."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.dataset.image_store import open_image
from stages.reporting.examples.cases import Case

SIDE: Final = 192
"""Longest side of an inlined image, in pixels."""
STRIP_SIDE: Final = 96
"""The same of an image beside others of its question."""
STRIP: Final = 8
"""Images of a question that are shown."""
QUALITY: Final = 72
BUDGET: Final = 2_000_000
"""Bytes of all inlined single images, and of those in strips; images beyond it are skipped."""


def inline_images(paths: Iterable[str]) -> dict[str, str]:
    """Path -> data URL of a JPEG of at most `SIDE` pixels; missing or corrupt images are skipped.

    Paths come from predictions, so only files below the working directory are opened.
    """
    return _inline_all(paths, SIDE)


def inline_strips(cases: Iterable[Case]) -> dict[str, str]:
    """The same for the images of cases that have several, of at most `STRIP_SIDE` pixels."""
    shown: list[str] = []
    for case in cases:
        for images in (case.images, case.without.images if case.without else ()):
            shown += [path for _, path in strip(images)]
    return _inline_all(shown, STRIP_SIDE)


def strip(images: Sequence[str], question: Sequence[str] = ()) -> list[tuple[int, str]]:
    """Number and path of the images that stand for all: at most `STRIP`, evenly spaced.

    They are in the order that the model saw, the first and the last among them. Numbers count from
    1; an image of a variant keeps its number among those of the `question`.
    """
    numbers = {path: number for number, path in enumerate(question, start=1)}
    indices: Iterable[int] = range(len(images))
    if len(images) > STRIP:
        indices = (round(each * (len(images) - 1) / (STRIP - 1)) for each in range(STRIP))
    return [(numbers.get(images[index], index + 1), images[index]) for index in indices]


def _inline_all(paths: Iterable[str], side: int) -> dict[str, str]:
    urls: dict[str, str] = {}
    used = 0
    for path in dict.fromkeys(paths):
        url = _inline(Path(path), side)
        if url is not None and used + len(url) <= BUDGET:
            urls[path] = url
            used += len(url)
    return urls


def _inline(path: Path, side: int) -> str | None:
    try:
        if not path.resolve().is_relative_to(Path.cwd().resolve()):
            return None
        image = open_image(path)
        image.thumbnail((side, side))
    except (InputError, OSError, ValueError):
        return None
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
