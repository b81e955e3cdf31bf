"""Sequence whose items are computed on access, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)


class LazySequence(Sequence[Item]):
    """Sequence of `length` items, each computed by `compute(index)` whenever it is accessed.

    Indices that reach `compute` are never negative. Whatever it raises, an access raises.
    """

    def __init__(self, length: int, compute: Callable[[int], Item]) -> None:
        self._indices, self._compute = range(length), compute

    def __len__(self) -> int:
        """Number of items."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """An item, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self._compute(at) for at in self._indices[index]]
        return self._compute(self._indices[index])

    def __iter__(self) -> Iterator[Item]:
        """All items; an IndexError of `compute` is raised, and does not end the iteration."""
        return map(self._compute, self._indices)
