"""Lists of texts in one cell, as JSON or as Python writes them, which published tables have.

Nothing is evaluated: a cell is a list only if it is quoted texts with commas between them, each of
which is then read by itself, however large it is.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Final

from stages.corpus.dataset.split_files import MAX_IMAGES
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.texts import RefusedRecord

_TEXT: Final = re.compile(
    r"""\s*+('[^'\\\n]*+(?:\\.[^'\\\n]*+)*+'|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+")\s*+([,\]])"""
)
_EXCERPT: Final = 60
"""Characters of a cell in messages: it may hold images."""
_END: Final = re.compile(r"\s*+\]\s*+\Z")


def is_list(cell: str) -> bool:
    """Whether a cell begins and ends as a list."""
    text = cell.strip()
    return text.startswith("[") and text.endswith("]")


def read_texts(cell: str, limit: int) -> list[str] | None:
    """The texts of a list of at most `limit` + 1, those behind them left out.

    None if the cell is no such list.
    """
    text = cell.strip()
    if not text.startswith("["):
        return None
    texts: list[str] = []
    at = 1
    while not _END.match(text, at):
        match = _TEXT.match(text, at)
        if match is None:
            return None
        written = _read_text(match[1])
        if written is None:
            return None
        texts.append(written)
        if len(texts) > limit:
            return texts
        at = match.end() - (match[2] == "]")
    return texts


def read_image_list(cell: str) -> list[str]:
    """The entries of a list of images, perhaps one more than a question may have.

    Raises RefusedRecord for a cell that is no list of texts.
    """
    texts = read_texts(cell, MAX_IMAGES)
    if texts is None:
        what = cell if len(cell) <= _EXCERPT else f"{cell[:_EXCERPT]}..."
        why = "not a list of images: write each in quotation marks, with commas between them"
        raise RefusedRecord(what, why, Reason.IMAGE_LIST)
    return texts


def _read_text(quoted: str) -> str | None:
    """The text in quotation marks; as JSON if it is that, or else as Python."""
    try:
        text = json.loads(quoted)
    except ValueError:
        try:
            text = ast.literal_eval(quoted)
        except (ValueError, SyntaxError, MemoryError):
            return None
    return text if isinstance(text, str) else None
