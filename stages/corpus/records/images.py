"""The images that a record names: one, or several in order, and slices of a volume.

`image_path` is one file or folder; `images` a list of them, e.g. two views, or prior and current. A
folder, and a file with several frames, is a volume, of which `slices` may choose frames, counted
from 1 in the volume's order.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stages.corpus.dataset.paths import IMAGES, MAX_NAME_BYTES, has_long_name, unsafe_path
from stages.corpus.dataset.split_files import MAX_IMAGES
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.texts import RefusedRecord, find_name_problem

IMAGE: Final = "image_path"
"""Field of a record about one image."""
SEVERAL: Final = "images"
"""Field of a record about several images, instead of `image_path`."""
SLICES: Final = "slices"
SHOWN: Final = "shown"
"""Field of a resized record about several images: the stored paths of all, in order."""
SOURCES: Final = "sources"
"""Field of such a record, by which stage splits keeps copies together: `image`, `pixel_hash` and
`perceptual_hash` of each file or volume, and `frames`, the pixel hashes of a volume's shown frames.
"""
FLOATS: Final = (
    "; pandas writes whole numbers of a column with gaps as 1.0: convert it with"
    ' .astype("Int64") first'
)
"""Remedy where the numbers of slices are floats."""
FRAMES: Final = "@frames"
"""Folder of an image store that the frames of volumes are kept in; no data set has its name."""
_MAX_SLICE: Final = 10**6


def read_image_paths(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of a record's images, in order, each a file or folder below Images/.

    Raises RefusedRecord for a path that is unsafe, and for a list that is empty, longer than
    MAX_IMAGES or names an image twice. A record without `images` must have `image_path` as text.
    """
    if SEVERAL not in raw:
        _check_path(raw[IMAGE], IMAGE)
        return (raw[IMAGE],)
    paths = raw[SEVERAL]
    if IMAGE in raw:
        why = f"both {IMAGE} and {SEVERAL}: keep {SEVERAL}, with all images in order"
        raise RefusedRecord(raw[IMAGE], why, Reason.IMAGE_LIST)
    if not isinstance(paths, list):
        raise RefusedRecord(paths, f"{SEVERAL} is not a list of paths", Reason.IMAGE_LIST)
    check_image_count(len(paths))
    for number, path in enumerate(paths, start=1):
        name = f"image {number} of {SEVERAL}"
        if not isinstance(path, str):
            raise RefusedRecord(path, f"{name} is not a path", Reason.IMAGE_LIST)
        if problem := find_name_problem(path):
            raise RefusedRecord(path, f"{name} {problem.why}", problem.reason)
        _check_path(path, name)
        if path in paths[: number - 1]:
            why = f"{name} is listed before: name each image once"
            raise RefusedRecord(path, why, Reason.IMAGE_LIST)
    return tuple(paths)


def check_image_count(count: int) -> None:
    """Raise RefusedRecord unless a list of so many images can be a question's."""
    if not 1 <= count <= MAX_IMAGES:
        why = f"{SEVERAL} has {count} images, a question has 1 to {MAX_IMAGES}"
        raise RefusedRecord(f"{count} images", why, Reason.IMAGE_LIST)


def read_slices(raw: Mapping[str, Any], image_paths: Sequence[str]) -> tuple[int, ...]:
    """The frames of its volume that a record names, from 1, in its order; empty if it names none.

    Raises RefusedRecord unless they are different whole numbers, and of one volume.
    """
    slices = raw.get(SLICES)
    if slices is None:
        return ()
    is_list = isinstance(slices, list) and all(_is_slice(number) for number in slices)
    if not is_list or not 1 <= len(slices) <= MAX_IMAGES or len({*slices}) < len(slices):
        why = f"{SLICES} is not a list of 1 to {MAX_IMAGES} different numbers, counted from 1"
        if isinstance(slices, float) or (isinstance(slices, list) and float in map(type, slices)):
            why += FLOATS
        raise RefusedRecord(slices, why, Reason.IMAGE_SLICE)
    if len(image_paths) > 1:
        why = f"{SLICES} of {len(image_paths)} images: it chooses among those of one volume"
        raise RefusedRecord(slices, why, Reason.IMAGE_SLICE)
    return tuple(slices)


def _is_slice(value: object) -> bool:
    # True and False are numbers, too
    return type(value) is int and 1 <= value <= _MAX_SLICE


def _check_path(path: str, name: str) -> None:
    """Raise RefusedRecord unless `path`, called `name`, leads to a file below Images/."""
    problem = unsafe_path(path)
    if not problem and path.endswith("/"):
        problem = "a path that ends with /: name a folder of slices without it"
    if not problem and (not path.startswith(IMAGES) or posixpath.normpath(path) != path):
        problem = f"not a file under {IMAGES}"
    if not problem and path.startswith(f"{IMAGES}{FRAMES}/"):
        problem = f"under {IMAGES}{FRAMES}, a name that the pipeline uses itself"
    if problem:
        raise RefusedRecord(path, f"{name} is {problem}", Reason.IMAGE_PATH)
    if has_long_name(path):
        why = f"{name} has a name longer than {MAX_NAME_BYTES} bytes"
        raise RefusedRecord(path, why, Reason.IMAGE_PATH)
