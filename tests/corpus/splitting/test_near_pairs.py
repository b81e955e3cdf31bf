"""near_pairs links all near hashes, and no others."""

from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.images import hashes as image_hashes
from stages.corpus.splitting.near_pairs import BITS, near_pairs


def bits_apart(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_hashes_have_the_length_that_images_are_hashed_to() -> None:
    assert BITS == image_hashes.BITS


def linked(hashes: list[str], distance: int) -> list[set[int]]:
    """The groups that near_pairs links, by brute force over its pairs."""
    groups = [{index} for index in range(len(hashes))]
    for first, second in chain.from_iterable(near_pairs(hashes, distance)):
        union = groups[first] | groups[second]
        for index in union:
            groups[index] = union
    return groups


@st.composite
def clustered(draw_: st.DrawFn) -> list[str]:
    """Hashes some bits away from a few centres."""
    centres = draw_(st.lists(st.integers(0, 2**BITS - 1), min_size=1, max_size=3))
    hashes = []
    for _ in range(draw_(st.integers(1, 12))):
        bits = draw_(st.sampled_from(centres))
        for position in draw_(st.lists(st.integers(0, BITS - 1), max_size=30)):
            bits ^= 1 << position
        hashes.append(f"{bits:0{BITS // 4}x}")
    return hashes


@settings(deadline=None, max_examples=60)
@given(clustered(), st.sampled_from([0, 1, 7, 10, 24]))
def test_all_near_hashes_are_linked_and_pairs_are_near(hashes: list[str], distance: int) -> None:
    groups = linked(hashes, distance)
    for i, first in enumerate(hashes):
        for j, second in enumerate(hashes):
            if bits_apart(first, second) <= distance:
                assert j in groups[i]
    for pairs in near_pairs(hashes, distance):
        assert all(bits_apart(hashes[i], hashes[j]) <= distance for i, j in pairs)


def test_no_hashes_have_no_pairs() -> None:
    assert sum(map(len, near_pairs([], 10))) == 0
