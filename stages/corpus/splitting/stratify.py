"""Stratified assignment of whole groups to train or test.

The aim is that of iterative stratification (Sechidis et al. 2011, "On the stratification of
multi-label data") for groups instead of single examples. Groups that hold the same numbers of each
kind of question are interchangeable, so it is only decided how many of them are trained on; which
ones is decided by a hash of the group's name. So the order of the input does not matter, and new
data moves few of the old groups to the other side.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

Stratum = tuple[str, str]
"""Modality and question type."""
Group = Mapping[Stratum, int]
"""How many questions of each stratum a group holds."""

_EMPTY: Final = 1.0
"""What an empty side costs; a side that is off by one question in ten costs a tenth of one over
ten.
"""
_GAIN: Final = 1e-9
"""Less is a rounding error."""

_Floats = NDArray[np.float64]


def stratify(groups: Mapping[str, Group], train_share: float, seed: int) -> set[str]:
    """Names of the groups to train on: about `train_share` of each modality, type and stratum.

    Every modality is decided by itself: data of another one changes nothing, unless a group spans
    both. Groups that span several modalities are decided first, among themselves. Where a stratum
    has groups enough, neither side of it is empty.
    """
    by_modality: dict[str, list[str]] = defaultdict(list)
    spanning: list[str] = []
    for name, group in groups.items():
        modalities = {modality for modality, _ in group}
        (by_modality[modalities.pop()] if len(modalities) == 1 else spanning).append(name)
    rank = {name: _hash(f"{seed}/{name}") for name in groups}
    train = _choose(spanning, groups, train_share, rank, {}, {})
    for modality in sorted(by_modality):
        fixed = [
            _total(groups[name] for name in names)
            for names in (train & set(spanning), set(spanning) - train)
        ]
        fixed_counts = [
            {stratum: n for stratum, n in side.items() if stratum[0] == modality} for side in fixed
        ]
        train |= _choose(by_modality[modality], groups, train_share, rank, *fixed_counts)
    return train


def _choose(
    names: Iterable[str],
    groups: Mapping[str, Group],
    share: float,
    rank: Mapping[str, bytes],
    train: Group,
    test: Group,
) -> set[str]:
    """Of the groups of these names those to train on, given what is on both sides already."""
    alike: dict[tuple[tuple[Stratum, int], ...], list[str]] = defaultdict(list)
    for name in names:
        alike[tuple(sorted(groups[name].items()))].append(name)
    # large groups first: small ones even out what they leave. Those of a size by a hash: modalities
    # that are built alike would otherwise be rounded alike, and small errors add up in their
    # question types
    kinds = sorted(alike, key=lambda kind: (-sum(n for _, n in kind), _hash(str(kind))))
    strata = sorted({stratum for stratum, _ in chain.from_iterable(kinds)} | {*train, *test})
    counts = np.array(
        [[dict(kind).get(stratum, 0) for stratum in strata] for kind in kinds], dtype=np.float64
    ).reshape(len(kinds), len(strata))
    sides = [
        np.array([side.get(stratum, 0) for stratum in strata], dtype=np.float64)
        for side in (train, test)
    ]
    numbers = np.array([len(alike[kind]) for kind in kinds])
    chosen = _Balance(
        _with_total(counts), numbers, share, *(_with_total(side[None])[0] for side in sides)
    ).solve()
    trained: set[str] = set()
    for kind, number in zip(kinds, chosen, strict=True):
        trained.update(sorted(alike[kind], key=rank.__getitem__)[:number])
    return trained


class _Balance:
    """Number of groups of each kind to train on: integers near a share of each stratum's questions.

    held: (kinds, strata) questions in one group of a kind; numbers: (kinds,) groups of it; train,
    test: (strata,) questions that are on a side already. What is made small is the sum over strata
    of (questions too many or too few)^2 / questions, chi square but for a factor, with a penalty
    for empty sides.
    """

    def __init__(
        self,
        counts: _Floats,
        numbers: NDArray[np.intp],
        share: float,
        train: _Floats,
        test: _Floats,
    ) -> None:
        self.held, self.numbers = counts, numbers
        self.given = train
        self.all = train + test + numbers @ counts
        self.target = share * self.all
        self.share = share

    def solve(self) -> list[int]:
        """Round each kind's share, then improve by moves or exchanges of groups."""
        chosen = self._rounded()
        train = self.given + chosen @ self.held
        while (move := self._best_move(chosen, train)) is not None:
            for kind, step in move:
                chosen[kind] += step
                train = train + step * self.held[kind]
        return [int(number) for number in chosen]

    def cost(self, train: _Floats) -> _Floats:
        """Of (..., strata) questions to train on: (...)."""
        empty = (train <= 0) | (train >= self.all)
        return (
            ((train - self.target) ** 2 / np.maximum(self.all, 1))
            + _EMPTY * (empty & (self.all > 1))
        ).sum(axis=-1)

    def _rounded(self) -> NDArray[np.intp]:
        """Each kind's share, up or down as it evens out the kinds before it."""
        chosen = np.floor(self.share * self.numbers).astype(np.intp)
        train, expected = self.given.copy(), self.share * (self.all - self.numbers @ self.held)
        for kind, number in enumerate(self.numbers):
            train += chosen[kind] * self.held[kind]
            expected += self.share * number * self.held[kind]
            more = train + self.held[kind]
            if chosen[kind] < number and self._apart(more - expected) < self._apart(
                train - expected
            ):
                chosen[kind], train = chosen[kind] + 1, more
        return chosen

    def _apart(self, difference: _Floats) -> float:
        return float((difference**2 / np.maximum(self.all, 1)).sum())

    def _best_move(self, chosen: NDArray[np.intp], train: _Floats) -> list[tuple[int, int]] | None:
        """The best move of one group, else the first improving exchange of two, else None."""
        limit = float(self.cost(train)) - _GAIN
        steps = [(kind, 1) for kind in np.flatnonzero(chosen < self.numbers).tolist()]
        steps += [(kind, -1) for kind in np.flatnonzero(chosen > 0).tolist()]
        if not steps:
            return None
        changes = np.array([step * self.held[kind] for kind, step in steps])
        costs = self.cost(train + changes)
        if costs.min() < limit:
            return [steps[int(costs.argmin())]]
        for index, change in enumerate(changes):
            pairs = self.cost(train + change + changes[index + 1 :])
            if len(pairs) and pairs.min() < limit:
                other = index + 1 + int(pairs.argmin())
                return [steps[index], steps[other]]
        return None


def _with_total(counts: _Floats) -> _Floats:
    """(rows, strata + 1): with the sum over strata, to balance the modality's total too."""
    return np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _total(groups: Iterable[Group]) -> Counter[Stratum]:
    total: Counter[Stratum] = Counter()
    for group in groups:
        total.update(group)
    return total
