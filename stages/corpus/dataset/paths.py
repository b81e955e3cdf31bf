"""Paths inside a corpus: its two folders, safety checks, and the files that an image_path names."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

QUESTIONS: Final = "QA_information/Open-access/"
IMAGES: Final = "Images/"
MAX_NAME_BYTES: Final = 240
"""Of one part of a path: file systems allow 255, and stages add a suffix."""

_NOT_IN_FILE_NAMES: Final = re.compile(r"[\x00\ud800-\udfff]")
_DIGITS: Final = re.compile(r"([0-9]{1,18})")
_LEFT_BEHIND: Final = re.compile(
    r"\._.*|__MACOSX|\.DS_Store|\.Spotlight-.*|\.Trash.*|\.fseventsd"  # macOS
    r"|Thumbs\.db|ehthumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information"  # Windows
    r"|~\$.*|\.~lock\..*#|.*~|\.?#.*#|\.#.*|\..*\.sw[a-z]|.*\.crdownload|.*\.part"  # programs
    r"|@eaDir|\.ipynb_checkpoints|\.git|\.svn|__pycache__|lost\+found",
    re.IGNORECASE,
)
"""Files and folders that operating systems, editors and servers leave behind."""


def is_left_behind(path: str) -> bool:
    """Whether a path is of a file that nobody put there, such as `._ward.csv` of macOS."""
    return any(_LEFT_BEHIND.fullmatch(part) for part in path.split("/"))


def unsafe_path(name: str) -> str | None:
    """Why a relative POSIX path may leave its folder or is not a file name; None if it is safe."""
    if not name:
        return "an empty name"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    if "\\" in name:
        return "a path with a backslash"
    if ".." in name.split("/"):
        return "a path that leads out of its folder"
    if _NOT_IN_FILE_NAMES.search(name):
        return "a name that is not UTF-8"
    return None


def has_long_name(path: str) -> bool:
    """Whether a part of the path takes more than MAX_NAME_BYTES in UTF-8."""
    # a character takes at most 4 bytes: short paths need no encoding
    return len(path) * 4 > MAX_NAME_BYTES and any(
        len(part.encode()) > MAX_NAME_BYTES for part in path.split("/")
    )


def image_files(names: Sequence[str], image_path: str) -> list[str]:
    """The files that an image_path names: itself, the files directly in that folder, or none.

    Those of a folder are in the order of the numbers in their names, 2.png before 10.png. `names`:
    all files of the corpus, sorted.
    """
    at = bisect_left(names, image_path)
    if at < len(names) and names[at] == image_path:
        return [image_path]
    folder = f"{image_path}/"
    below = takewhile(lambda name: name.startswith(folder), names[bisect_left(names, folder) :])
    return sorted((name for name in below if "/" not in name[len(folder) :]), key=_numbers_apart)


def first_below(names: Sequence[str], folder: str) -> str | None:
    """The first file in a folder or in one below it; None if there is none. `names`: sorted."""
    at = bisect_left(names, f"{folder}/")
    return names[at] if at < len(names) and names[at].startswith(f"{folder}/") else None


def _numbers_apart(name: str) -> list[tuple[int, str]]:
    """Sort key that compares numbers in names as numbers: "a10b" -> a, 10, b."""
    # parts alternate: text, digits, text, ...; a tuple compares the number first, then the spelling
    parts = _DIGITS.split(name)
    return [(int(part) if at % 2 else 0, part) for at, part in enumerate(parts)]
