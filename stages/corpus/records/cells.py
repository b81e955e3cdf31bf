"""Cells of a table that hold lists: the images of a question, slices of a volume, options.

A list is written as JSON, or with | between its entries. Images may also have numbered columns, as
some published data sets have them: image_1, image_2 and so on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from stages.corpus.dataset.paths import IMAGES, unsafe_path
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.images import FLOATS
from stages.corpus.records.texts import RefusedRecord

_ROLE: Final = "image_"
"""Begins the meaning of a numbered column."""
_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[0-9]{1,7}")
_FLOAT: Final = re.compile(r"[0-9]{1,7}\.0+")
_JSON_LIST: Final = re.compile(r'\[\s*(?:"|\])')
_PYTHON_LIST: Final = re.compile(r"\[\s*'")
_NUMBERED: Final = re.compile(
    r"(?:image|picture)(?:[\s_-]*(?:path|file))?[\s_-]*([0-9]{1,3})", re.IGNORECASE
)


def numbered_role(name: str) -> str | None:
    """The meaning `image_2` of a column such as "Image 2"; None for other names."""
    match = _NUMBERED.fullmatch(name.strip())
    return f"{_ROLE}{int(match[1])}" if match else None


def image_numbers(roles: Iterable[str]) -> list[int]:
    """The numbers of those of the columns that are numbered ones of images, in their order."""
    return [int(role.removeprefix(_ROLE)) for role in roles if role.startswith(_ROLE)]


def image_roles(roles: Iterable[str]) -> list[str]:
    """Those of the columns that hold images: `image`, `images`, then the numbered in order."""
    found = [*roles]
    whole = [role for role in ("image", "images") if role in found]
    return whole + [f"{_ROLE}{number}" for number in sorted(image_numbers(found))]


def filled_roles(roles: Iterable[str]) -> list[str]:
    """The columns of images that a row has filled, in order: one, or several numbered ones.

    Raises RefusedRecord if a row has filled columns that each stand for all its images.
    """
    filled = image_roles(roles)
    if len(filled) > 1 and not filled[0].startswith(_ROLE):
        first, second = filled[:2]
        why = f"{first}, and {second} beside it: write all into one of them, in order"
        raise RefusedRecord(f"{first}, {second}", why, Reason.IMAGE_LIST)
    return filled


def written_images(row: Mapping[str, str]) -> list[str]:
    """The texts of a row's images as written, in order; one empty text if it names none.

    `row`: its cells by meaning. Raises RefusedRecord as `filled_roles`, and for an unusable list.
    """
    filled = filled_roles(role for role in row if row[role].strip())
    if filled == ["images"]:
        return split_list(row["images"].strip(), "images")
    return [row[role].strip() for role in filled] or [""]


def image_path(written: str) -> str:
    """The path of an image below Images/."""
    path = written
    while path.startswith("./"):
        path = path.removeprefix("./")
    if is_address(path):
        why = "an address: download the image, and write its path from the CSV's folder"
        raise RefusedRecord(path, why, Reason.IMAGE_PATH)
    if path and not path.startswith(IMAGES) and not unsafe_path(path):
        path = IMAGES + path
    return path


def is_address(path: str) -> bool:
    """Whether an image path is an address, such as https://..., and not a file's."""
    return _ADDRESS.match(path) is not None


def slice_numbers(cell: str) -> list[int] | None:
    """The numbers in a cell, as 3|7|9 or 3, 7, 9; None if it is empty."""
    if not cell.strip():
        return None
    words = re.split(r"[|,;\s]+", cell.strip().removeprefix("[").removesuffix("]").strip())
    if not all(_NUMBER.fullmatch(word) for word in words):
        why = "slices are whole numbers, counted from 1, with | between them"
        if all(_FLOAT.fullmatch(word) for word in words):
            why += FLOATS
        raise RefusedRecord(cell, why, Reason.IMAGE_SLICE)
    return [int(word) for word in words]


def split_list(cell: str, name: str) -> list[str]:
    """The texts in a cell `name`, "options" or "images": a JSON list, or separated by |."""
    reason = Reason.OPTIONS_FORM if name == "options" else Reason.IMAGE_LIST
    if _PYTHON_LIST.match(cell):
        why = f'{name} look like a Python list: put each in "..." as in JSON, or | between them'
        raise RefusedRecord(cell, why, reason)
    if not _JSON_LIST.match(cell):
        return [text.strip() for text in cell.split("|")] if cell else []
    try:
        texts = json.loads(cell)
    except (ValueError, RecursionError) as error:
        why = f"{name} begin like a JSON list but are not one ({error})"
        raise RefusedRecord(cell, why, reason) from None
    if not all(isinstance(text, str) for text in texts):
        why = f"{name} are a JSON list, but not only of texts"
        raise RefusedRecord(cell, why, reason)
    return list(texts)
