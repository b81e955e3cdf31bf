"""Prior-balanced subset of a test split: the largest on which the blind prior is at chance.

Definition. For a subset S with n(q) options in question q, chance is the mean over S of 1/n(q), and
the prior's accuracy is the mean over S of its credit c(q) (`Prior.credit`). The prior is at chance
on S if both are exactly equal, in rational numbers: the sum over S of the excess c(q) - 1/n(q) is
0. Both means are over S itself, so chance depends on its composition.

The largest such S is the split minus the smallest set whose excesses sum to that of the whole
split: an integer knapsack, solved exactly. If its table would not fit into memory (many numbers of
options in one split have a large common denominator), the questions of each number of options are
balanced on their own: the prior is at chance on the union, too, which may not be the largest. A
hash of the ids decides which of several questions with the same excess are dropped, so neither the
order of the file nor anything about an image matters. If the prior gets every question right, the
subset is empty.

The subset tends to hold all questions that the prior gets wrong and few of those it gets right. An
accuracy on it is one without the shortcut, not an estimate for the split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from stages.scoring.prior import Prior
from stages.scoring.questions import Question, chance

_MAX_CELLS = 2**26
"""Cells of the tables of one knapsack, of 4 bytes each."""
_UNREACHABLE = np.iinfo(np.int32).max // 2
"""Count of an unreachable sum: more than any number of questions, and twice of it fits an int32."""


@dataclass(frozen=True)
class Balanced:
    """The subset of a test split of `n` questions, ids in split order.

    `chance` is that on the subset, equal to the prior's accuracy on it; None if it is empty.
    """

    question_ids: tuple[str, ...]
    n: int
    chance: Fraction | None

    @property
    def size(self) -> int:
        """Number of questions in the subset."""
        return len(self.question_ids)


def balanced_subset(prior: Prior, questions: Sequence[Question]) -> Balanced:
    """The largest subset of a test split on which `prior` is at chance.

    Question ids must be distinct.
    """
    excesses = [
        prior.credit(question) - Fraction(1, len(question.options)) for question in questions
    ]
    order = sorted(range(len(questions)), key=lambda i: _hashed(questions[i].question_id))
    kept = _balanced([excesses[i] for i in order], [len(questions[i].options) for i in order])
    subset = [questions[i] for i in sorted(order[position] for position in kept)]
    return Balanced(
        tuple(question.question_id for question in subset),
        len(questions),
        chance(subset) if subset else None,
    )


def _balanced(excesses: Sequence[Fraction], option_counts: Sequence[int]) -> list[int]:
    """Indices of a subset that sums to 0: the largest, if the knapsack fits into `_MAX_CELLS`."""
    if _cells(excesses) <= _MAX_CELLS:
        return largest_without_excess(excesses)
    kept: list[int] = []
    for count in sorted(set(option_counts)):
        own = [index for index, each in enumerate(option_counts) if each == count]
        if _cells([excesses[index] for index in own]) > _MAX_CELLS:
            # ties of several sizes: only right, wrong and at chance
            own = [index for index in own if count % excesses[index].denominator == 0]
        positions = largest_without_excess([excesses[index] for index in own])
        kept += [own[position] for position in positions]
    return kept


def _cells(excesses: Sequence[Fraction]) -> int:
    """Cells of the tables that `largest_without_excess` needs."""
    unit = Fraction(1, math.lcm(*(excess.denominator for excess in excesses)))
    values = {excess for excess in excesses if excess}
    return int(sum(map(abs, excesses)) / unit + 1) * (len(values) + 1)


def largest_without_excess(excesses: Sequence[Fraction]) -> list[int]:
    """Ascending indices of a largest subset that sums to 0; among equal values the first ones.

    Time and memory grow with the sum of absolute values in units of their common denominator: a few
    seconds for 90,000 questions of 2 to 4 options, where the unit is 1/12.
    """
    unit = Fraction(1, math.lcm(*(excess.denominator for excess in excesses)))
    indices_of: dict[int, list[int]] = {}  # excess in units -> its questions
    for index, excess in enumerate(excesses):
        indices_of.setdefault(int(excess / unit), []).append(index)
    values = sorted(indices_of)
    counts = [len(indices_of[value]) for value in values]
    total = sum(value * count for value, count in zip(values, counts, strict=True))
    drop_counts = _fewest(values, counts, total)
    subset: list[int] = []
    for value, count, drop_count in zip(values, counts, drop_counts, strict=True):
        subset += indices_of[value][: count - drop_count]
    return sorted(subset)


def _fewest(values: Sequence[int], counts: Sequence[int], target: int) -> list[int]:
    """How many items of each value, up to its count, reach `target` with the fewest items in all.

    `target` must be reachable, as the sum of all items is. Of several solutions, the one with the
    fewest items of the last value, then of the one before it, and so on.
    """
    # Dynamic programming over the values: best[s] is the least number of items that sum to s + low.
    low = sum(value * count for value, count in zip(values, counts, strict=True) if value < 0)
    high = sum(value * count for value, count in zip(values, counts, strict=True) if value > 0)
    best = np.full(high - low + 1, _UNREACHABLE, dtype=np.int32)
    best[-low] = 0
    tables = [best]  # tables[k] allows the first k values
    for value, count in zip(values, counts, strict=True):
        best = _extend(best, value, count)
        tables.append(best)
    # Walk back from the target: how many items of each value, the last one first.
    position = target - low
    numbers = [0] * len(values)
    for k in reversed(range(len(values))):
        if values[k] != 0:
            fewest = tables[k + 1][position]
            numbers[k] = _items_used(tables[k], fewest, position, values[k], counts[k])
            position -= numbers[k] * values[k]
    return numbers


def _extend(best: NDArray[np.int32], value: int, count: int) -> NDArray[np.int32]:
    """Allow up to `count` more items of `value`, in lots of 1, 2, 4, ... items."""
    if value == 0:
        return best
    lot = 1
    while count > 0:
        lot = min(lot, count)
        extended = np.full_like(best, _UNREACHABLE)
        step = lot * abs(value)
        if value > 0:
            extended[step:] = best[: len(best) - step] + lot
        else:
            extended[: len(best) - step] = best[step:] + lot
        best = np.minimum(best, extended)
        count -= lot
        lot *= 2
    return best


def _items_used(
    before: NDArray[np.int32], fewest: np.int32, position: int, value: int, count: int
) -> int:
    """The least x with before[position - x * value] + x == fewest."""
    numbers = np.arange(count + 1)
    sources = position - numbers * value
    inside = (sources >= 0) & (sources < len(before))
    matches = before[sources[inside]] + numbers[inside] == fewest
    return int(numbers[inside][matches.argmax()])


def _hashed(question_id: str) -> bytes:
    return hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).digest()
