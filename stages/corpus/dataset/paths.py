"""Paths inside a corpus: its two folders, which paths are safe, which files an image_path names."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

QUESTIONS: Final = "QA_information/Open-access/"
IMAGES: Final = "Images/"

_NO_FILE_NAME: Final = re.compile(r"[\x00\ud800-\udfff]")


def unsafe_path(name: str) -> str | None:
    """Why a relative POSIX path may leave its folder, or is no file name; None if it is safe."""
    if not name:
        return "an empty name"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    if "\\" in name:
        return "a backslash in its path"
    if ".." in name.split("/"):
        return "a path that leads out of its folder"
    if _NO_FILE_NAME.search(name):
        return "a name that is not UTF-8"
    return None


def image_files(names: Sequence[str], image_path: str) -> list[str]:
    """The files that an image_path names: itself, the files directly in that folder, or none.

    `names`: all files of the corpus, sorted.
    """
    at = bisect_left(names, image_path)
    if at < len(names) and names[at] == image_path:
        return [image_path]
    folder = f"{image_path}/"
    files = []
    for name in names[bisect_left(names, folder) :]:
        if not name.startswith(folder):
            break
        if "/" not in name[len(folder) :]:
            files.append(name)
    return files
