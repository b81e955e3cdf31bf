"""Grouping of questions that must stay together: same image, near-duplicates, or same patient.

A group is all that is linked, through however many others: if a is a copy of b, and c is of b's
patient, the three are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.corpus.splitting.near_pairs import near_pairs

_MOST_LINKS: Final = 2**20
"""Links that are held before they are joined: where all images look alike there are as many as
pairs.
"""


@dataclass(frozen=True)
class GroupedImage:
    """One image for grouping: path, hashes (64 hex digits each), patient if known."""

    image: str
    pixel_hash: str
    perceptual_hash: str
    patient: tuple[str, str] | None = None


def patient_of(image_path: str, patterns: Sequence[re.Pattern[str]]) -> tuple[str, str] | None:
    """(data set, patient id) from the first pattern that matches "Images/<data set>/...".

    Else None.

    Ids are those of a data set: patient 7 of another one is somebody else.
    """
    for pattern in patterns:
        if match := pattern.search(image_path):
            _, *folders, _ = image_path.split("/")
            patient = next((text for text in match.groups() if text), None)
            dataset = folders[0] if folders else ""
            return (dataset, patient) if patient else None
    return None


def group_images(images: Sequence[GroupedImage], near_duplicates: int | None) -> dict[str, str]:
    """Image -> the name of its group, which is the first of its images in the order of their names.

    `near_duplicates` is the number of bits in which the perceptual hashes of two copies may differ;
    None links only images whose pixels are equal. The order of `images` does not matter; each image
    may be there once.
    """
    ordered = sorted(images, key=lambda image: image.image)
    links: list[NDArray[np.intp]] = [
        _equal([image.pixel_hash for image in ordered]),
        _equal([image.patient for image in ordered]),
    ]
    labels = _join(np.arange(len(ordered)), links)
    if near_duplicates is not None and ordered:
        labels = _join_all(
            labels, near_pairs([image.perceptual_hash for image in ordered], near_duplicates)
        )
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return {
        image.image: ordered[index].image
        for image, index in zip(ordered, first[inverse].tolist(), strict=True)
    }


def _equal(keys: Sequence[object]) -> NDArray[np.intp]:
    """Each index linked to the first of the same key; a key that is None is equal to none."""
    first: dict[object, int] = {}
    found = [
        (first.setdefault(key, index), index) for index, key in enumerate(keys) if key is not None
    ]
    return np.array(found, dtype=np.intp).reshape(-1, 2)


def _join_all(labels: NDArray[np.intp], found: Iterable[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Labels after all links, joined a portion at a time."""
    waiting: list[NDArray[np.intp]] = []
    number = 0
    for links in found:
        waiting.append(links)
        number += len(links)
        if number > _MOST_LINKS:
            labels, waiting, number = _join(labels, waiting), [], 0
    return _join(labels, waiting)


def _join(labels: NDArray[np.intp], links: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Labels from 0 in which what the links link, directly or through others, has become one."""
    pairs = labels[np.concatenate([*links, np.empty((0, 2), np.intp)])]
    graph = coo_array(
        (np.ones(len(pairs), dtype=np.int32), (pairs[:, 0], pairs[:, 1])),
        shape=(len(labels), len(labels)),
    )
    _, joined = connected_components(graph, directed=False)
    return np.asarray(joined, dtype=np.intp)[labels]
