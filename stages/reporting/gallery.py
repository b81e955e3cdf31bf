"""Images small enough to stand in the page itself, as data addresses."""

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
"""Bytes of all inlined images together; those after that are left out."""


def inline_images(paths: Iterable[str]) -> dict[str, str]:
    """Path -> data URL of a JPEG of at most `SIDE` pixels; missing or corrupt images are left out.

    Paths come from predictions: only such as lie below the working directory are opened.
    """
    urls: dict[str, str] = {}
    spent = 0
    for path in dict.fromkeys(paths):
        address = _inline(Path(path))
        if address is not None and spent + len(address) <= BUDGET:
            urls[path] = address
            spent += len(address)
    return urls


def _inline(path: Path) -> str | None:
    try:
        if not path.resolve().is_relative_to(Path.cwd().resolve()):
            return None
        small = open_image(path)
        small.thumbnail((SIDE, SIDE))
    except (InputError, OSError, ValueError):
        return None
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
