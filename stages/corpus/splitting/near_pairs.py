"""Multi-index hashing: pairs of perceptual hashes that differ in at most a few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BITS: Final = 256
"""Of a perceptual hash (stages/corpus/images/hashes.py)."""
_WORDS: Final = BITS // 64

_Hashes = NDArray[np.uint64]
"""(number, 4): 256 bits each."""


def near_pairs(hashes: Sequence[str], distance: int) -> Iterator[NDArray[np.intp]]:
    """Index pairs (pairs, 2) of 64-digit hex hashes that differ in at most `distance` bits.

    Of equal hashes each is paired with the first, and only the first with others; a pair may come
    more than once. Exact, without comparing all pairs: two near hashes agree on at least one of
    distance + 1 bands of bits, so only those that share a band are compared (multi-index hashing,
    Norouzi et al. 2012, arXiv 1307.2982, with a radius of 0). Memory grows with the number of
    hashes, time with the number of pairs that share a band.
    """
    content = bytes.fromhex("".join(hashes))
    words = np.frombuffer(content, dtype=np.uint64).reshape(len(hashes), _WORDS)
    distinct, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
    first_of = first[inverse.reshape(-1)]
    copies = np.flatnonzero(first_of != np.arange(len(hashes)))
    yield np.column_stack([first_of[copies], copies])
    for labels in _bands(distinct, distance + 1):
        for pairs in _near_within(distinct, labels, distance):
            yield first[pairs]


def _bands(hashes: _Hashes, number: int) -> Iterator[NDArray[np.int64]]:
    """For each band, a label (number,) per hash, equal where all bits of the band are.

    A band takes every number-th bit. So the low frequencies, which are alike within a modality, are
    spread over all bands, and every band has high ones.
    """
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    for start in range(number):
        packed = np.packbits(bits[:, start::number], axis=1)
        # all bytes of a row as one opaque value
        rows: NDArray[Any] = np.ascontiguousarray(packed).view(f"V{packed.shape[1]}").reshape(-1)
        yield np.unique(rows, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _near_within(
    hashes: _Hashes, labels: NDArray[np.int64], distance: int
) -> Iterator[NDArray[np.intp]]:
    """Near pairs among hashes with the same label: compare each with its successors in the run."""
    order = np.argsort(labels, kind="stable")
    sorted_hashes = hashes[order]
    sorted_labels = labels[order]
    run_ends = np.searchsorted(sorted_labels, sorted_labels, side="right")
    # positions whose successor at `step` is still in their run
    step = 1
    positions = np.arange(len(order))
    while len(positions := positions[positions + step < run_ends[positions]]):
        differing = sorted_hashes[positions] ^ sorted_hashes[positions + step]
        distances = np.bitwise_count(differing).sum(axis=1, dtype=np.int64)
        if len(near := positions[distances <= distance]):
            yield np.column_stack([order[near], order[near + step]])
        step += 1
