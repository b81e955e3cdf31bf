"""Thumbnails for the report page, inlined as data URLs."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.dataset.image_store import open_image

SIDE: Final = 192
"""Longest side of an inlined image, in pixels."""
QUALITY: Final = 72
BUDGET: Final = 2_000_000
"""Total bytes of all inlined images; images beyond it are skipped."""


def inline_images(paths: Iterable[str]) -> dict[str, str]:
    """Path -> data URL of a JPEG of at most `SIDE` pixels; missing or corrupt images are skipped.

    Paths come from predictions, so only files below the working directory are opened.
    """
    urls: dict[str, str] = {}
    used = 0
    for path in dict.fromkeys(paths):
        url = _inline(Path(path))
        if url is not None and used + len(url) <= BUDGET:
            urls[path] = url
            used += len(url)
    return urls


def _inline(path: Path) -> str | None:
    try:
        if not path.resolve().is_relative_to(Path.cwd().resolve()):
            return None
        image = open_image(path)
        image.thumbnail((SIDE, SIDE))
    except (InputError, OSError, ValueError):
        return None
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
