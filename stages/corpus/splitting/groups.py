"""Grouping of images that must stay together: same pixels, near-duplicates, or same patient.

Groups are connected components: if a is a copy of b, and c is of b's patient, all three are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.corpus.splitting.near_pairs import near_pairs

_MOST_LINKS: Final = 2**20
"""Links collected before they are joined, which bounds memory where all images look alike."""


@dataclass(frozen=True)
class GroupedImage:
    """One image for grouping: path, hashes (64 hex digits each), data set; patient, study if known.

    `linked`: paths of others that a question shows together with it. `frame_hashes`: pixel hashes
    of the frames that are shown of a volume, without blank ones.
    """

    image: str
    pixel_hash: str
    perceptual_hash: str
    patient: tuple[str, str] | None = None
    dataset: str = ""
    study: str | None = None
    linked: tuple[str, ...] = ()
    frame_hashes: tuple[str, ...] = ()


def patient_of(image_path: str, patterns: Sequence[re.Pattern[str]]) -> tuple[str, str] | None:
    """(data set, patient id) by the first pattern that matches "Images/<data set>/...", or None.

    Ids are unique within a data set only: patient 7 of another one is somebody else.
    """
    for pattern in patterns:
        if match := pattern.search(image_path):
            _, *folders, _ = image_path.split("/")
            dataset = folders[0] if folders else ""
            patient = next(filter(None, match.groups()), None)
            return (dataset, patient) if patient else None
    return None


def group_images(images: Sequence[GroupedImage], near_duplicates: int | None) -> dict[str, str]:
    """Image -> the name of its group, which is the first of its images by name.

    `near_duplicates`: number of bits in which the perceptual hashes of two copies may differ; None
    links only images whose pixels are equal. `images` may be in any order, each once.
    """
    ordered = sorted(images, key=lambda image: image.image)
    links = [
        _link_equal([image.pixel_hash for image in ordered]),
        _link_equal([image.patient for image in ordered]),
        _link_equal([image.study for image in ordered]),
        _link_shown_together(ordered),
        _link_equal_frames(ordered),
    ]
    labels = _join(np.arange(len(ordered)), links)
    if near_duplicates is not None and ordered:
        hashes = [image.perceptual_hash for image in ordered]
        labels = _join_all(labels, near_pairs(hashes, near_duplicates))
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return {
        image.image: ordered[index].image
        for image, index in zip(ordered, first[inverse].tolist(), strict=True)
    }


def _link_equal(keys: Sequence[object]) -> NDArray[np.intp]:
    """(links, 2): each index with the first one of the same key; None equals nothing."""
    first: dict[object, int] = {}
    links = [
        (first.setdefault(key, index), index) for index, key in enumerate(keys) if key is not None
    ]
    return np.array(links, dtype=np.intp).reshape(-1, 2)


def _link_shown_together(images: Sequence[GroupedImage]) -> NDArray[np.intp]:
    """(links, 2): each image with those that a question shows with it."""
    index_of = {image.image: index for index, image in enumerate(images)}
    links: list[tuple[int, int]] = []
    for index, image in enumerate(images):
        links += ((index, index_of[path]) for path in image.linked)
    return np.array(links, dtype=np.intp).reshape(-1, 2)


def _link_equal_frames(images: Sequence[GroupedImage]) -> NDArray[np.intp]:
    """(links, 2): volumes with a frame in common, and volumes with a frame that is an image."""
    first: dict[str, int] = {}
    for index, image in enumerate(images):
        for pixel_hash in image.frame_hashes:
            first.setdefault(pixel_hash, index)
    links: list[tuple[int, int]] = []
    for index, image in enumerate(images):
        hashes = {image.pixel_hash, *image.frame_hashes} & first.keys()
        links += ((first[each], index) for each in sorted(hashes))
    return np.array(links, dtype=np.intp).reshape(-1, 2)


def _join_all(labels: NDArray[np.intp], batches: Iterable[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Labels after all links, joined whenever more than _MOST_LINKS are pending."""
    pending: list[NDArray[np.intp]] = []
    count = 0
    for links in batches:
        pending.append(links)
        count += len(links)
        if count > _MOST_LINKS:
            labels = _join(labels, pending)
            pending = []
            count = 0
    return _join(labels, pending)


def _join(labels: NDArray[np.intp], links: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Merge labels that links connect, directly or through others; the result counts from 0."""
    # not where only the results of stage splits are read: the import takes a quarter of a second
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = labels[np.concatenate([*links, np.empty((0, 2), np.intp)])]
    graph = coo_array(
        (np.ones(len(pairs), dtype=np.int32), (pairs[:, 0], pairs[:, 1])),
        shape=(len(labels), len(labels)),
    )
    _, joined = connected_components(graph, directed=False)
    return np.asarray(joined, dtype=np.intp)[labels]
