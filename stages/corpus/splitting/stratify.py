"""Stratified assignment of whole groups to train or test.

The aim is that of iterative stratification (Sechidis et al. 2011, "On the stratification of
multi-label data") for groups instead of single examples. Groups with the same number of questions
per stratum are interchangeable, so only the number of them to train on is optimized; which ones is
decided by a hash of the group's name. So the order of the input does not matter, and new data moves
few of the old groups to the other side.
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
"""Number of questions per stratum in a group."""
_Kind = tuple[tuple[Stratum, int], ...]
"""A group as a sorted tuple: groups of one kind are interchangeable."""

_EMPTY: Final = 1.0
"""Cost of an empty side; a side of ten questions that is off by one costs a tenth."""
_GAIN: Final = 1e-9
"""Smaller improvements are rounding errors."""

_Floats = NDArray[np.float64]


def stratify(groups: Mapping[str, Group], train_share: float, seed: int) -> set[str]:
    """Names of the groups to train on: about `train_share` of each modality, type and stratum.

    Every modality is decided separately: data of another one changes nothing, unless a group spans
    both. Groups that span several modalities are decided first, among themselves. Where a stratum
    has enough groups, neither side of it is empty.
    """
    by_modality: dict[str, list[str]] = defaultdict(list)
    spanning: list[str] = []
    for name, group in groups.items():
        modalities = {modality for modality, _ in group}
        if len(modalities) == 1:
            by_modality[modalities.pop()].append(name)
        else:
            spanning.append(name)
    rank = {name: _hash(f"{seed}/{name}") for name in groups}
    spanning_train = _choose(spanning, groups, train_share, rank, {}, {})
    spanning_test = set(spanning) - spanning_train
    train = set(spanning_train)
    for modality, names in sorted(by_modality.items()):
        fixed_train = _total((groups[name] for name in spanning_train), modality)
        fixed_test = _total((groups[name] for name in spanning_test), modality)
        train |= _choose(names, groups, train_share, rank, fixed_train, fixed_test)
    return train


def _choose(
    names: Iterable[str],
    groups: Mapping[str, Group],
    share: float,
    rank: Mapping[str, bytes],
    fixed_train: Group,
    fixed_test: Group,
) -> set[str]:
    """The names of groups to train on, given the questions that are on both sides already."""
    by_kind: dict[_Kind, list[str]] = defaultdict(list)
    for name in names:
        by_kind[tuple(sorted(groups[name].items()))].append(name)
    # Large groups first: small ones even out their rounding. Those of equal size by a hash, as
    # modalities that are built alike would otherwise be rounded alike, and small errors would add
    # up in their question types.
    kinds = sorted(by_kind, key=lambda kind: (-sum(n for _, n in kind), _hash(str(kind))))
    in_kinds = {stratum for stratum, _ in chain.from_iterable(kinds)}
    strata = sorted(in_kinds | {*fixed_train, *fixed_test})
    train_row, test_row = _table([fixed_train, fixed_test], strata)
    available = np.array([len(by_kind[kind]) for kind in kinds])
    balance = _Balance(_table(map(dict, kinds), strata), available, share, train_row, test_row)
    train: set[str] = set()
    for kind, number in zip(kinds, balance.solve(), strict=True):
        train.update(sorted(by_kind[kind], key=rank.__getitem__)[:number])
    return train


class _Balance:
    """Number of groups of each kind to train on: integers near a share of each stratum's questions.

    The last column of all arrays over strata is their sum, the modality's total. questions: (kinds,
    strata + 1) in one group of each kind; available: (kinds,) groups; train, test: (strata + 1,)
    questions that are on a side already. Minimizes the sum over strata of
    (questions too many or too few)^2 / questions, which is proportional to chi square, with a
    penalty for empty sides.
    """

    def __init__(
        self,
        questions: _Floats,
        available: NDArray[np.intp],
        share: float,
        train: _Floats,
        test: _Floats,
    ) -> None:
        self.questions = questions
        self.available = available
        self.share = share
        self.fixed_train = train
        self.total = train + test + available @ questions
        self.target = share * self.total

    def solve(self) -> list[int]:
        """Round each kind's share, then improve by moves or exchanges of groups."""
        chosen = self._rounded()
        train = self.fixed_train + chosen @ self.questions
        while (move := self._best_move(chosen, train)) is not None:
            for kind, step in move:
                chosen[kind] += step
                train = train + step * self.questions[kind]
        return [int(number) for number in chosen]

    def cost(self, train: _Floats) -> _Floats:
        """Cost (...) of (..., strata + 1) questions to train on."""
        is_empty = (train <= 0) | (train >= self.total)
        penalty = _EMPTY * (is_empty & (self.total > 1))
        return (self._chi_square(train - self.target) + penalty).sum(axis=-1)

    def _chi_square(self, difference: _Floats) -> _Floats:
        return difference**2 / np.maximum(self.total, 1)

    def _rounded(self) -> NDArray[np.intp]:
        """Each kind's share, up or down as it evens out the kinds before it."""
        chosen = np.floor(self.share * self.available).astype(np.intp)
        # running sums over the kinds so far: questions to train on, and their exact share
        train = self.fixed_train.copy()
        expected = self.share * (self.total - self.available @ self.questions)
        for kind, number in enumerate(self.available):
            train += chosen[kind] * self.questions[kind]
            expected += self.share * number * self.questions[kind]
            rounded_up = train + self.questions[kind]
            cost_down = self._chi_square(train - expected).sum()
            cost_up = self._chi_square(rounded_up - expected).sum()
            if chosen[kind] < number and cost_up < cost_down:
                chosen[kind] += 1
                train = rounded_up
        return chosen

    def _best_move(self, chosen: NDArray[np.intp], train: _Floats) -> list[tuple[int, int]] | None:
        """The best move of one group, else the first improving exchange of two, else None.

        A move is (kind, +1 or -1): one group more or less to train on.
        """
        limit = float(self.cost(train)) - _GAIN
        moves = [(kind, 1) for kind in np.flatnonzero(chosen < self.available).tolist()]
        moves += [(kind, -1) for kind in np.flatnonzero(chosen > 0).tolist()]
        if not moves:
            return None
        changes = np.array([step * self.questions[kind] for kind, step in moves])
        costs = self.cost(train + changes)
        if costs.min() < limit:
            return [moves[int(costs.argmin())]]
        for index, change in enumerate(changes):
            # each pair once: with later moves only
            costs = self.cost(train + change + changes[index + 1 :])
            if len(costs) and costs.min() < limit:
                other = index + 1 + int(costs.argmin())
                return [moves[index], moves[other]]
        return None


def _table(groups: Iterable[Group], strata: list[Stratum]) -> _Floats:
    """(groups, strata + 1): questions, with their sum last to balance the modality's total too."""
    rows = [[group.get(stratum, 0) for stratum in strata] for group in groups]
    counts = np.array(rows, dtype=np.float64).reshape(len(rows), len(strata))
    return np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _total(groups: Iterable[Group], modality: str) -> Counter[Stratum]:
    """Questions of a modality per stratum, summed over groups."""
    total: Counter[Stratum] = Counter()
    for group in groups:
        total.update({stratum: n for stratum, n in group.items() if stratum[0] == modality})
    return total
