"""Prior-balanced subset of a test split: the largest on which the blind prior is at chance.

Definition. Of a subset S with n(q) options for question q, chance is the mean over S of 1/n(q), and
the prior's accuracy the mean over S of its credit c(q) (`Prior.credit`). The prior is at chance on
S if the two are equal, exactly, in rational numbers: the sum over S of the excess c(q) - 1/n(q) is
0. Both means are over S itself, so chance follows its make-up.

The largest such S is the split less the smallest set whose excesses sum to that of the whole split:
a knapsack in integers, solved exactly. Which of the questions with the same excess go is settled by
a hash of their ids, so neither the order of the file nor anything about an image enters. The empty
set is at chance: on a split that the prior has all right, nothing is left.

All questions that the prior gets wrong tend to stay, and few of those it gets right: an accuracy on
the subset is one with the shortcut taken away, not an estimate for the split.
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

_FAR = np.iinfo(np.int32).max // 2
"""More questions than there are, twice of which still fits: "cannot be reached"."""


@dataclass(frozen=True)
class Balanced:
    """Selected question ids in split order, of `n`.

    `chance` on them, equal to the prior's accuracy.

    `chance` is None if none are selected.
    """

    question_ids: tuple[str, ...]
    n: int
    chance: Fraction | None

    @property
    def size(self) -> int:
        """How many questions are kept."""
        return len(self.question_ids)


def balanced_subset(prior: Prior, questions: Sequence[Question]) -> Balanced:
    """The largest subset of a test split on which `prior` is at chance.

    Question ids must be distinct.
    """
    excesses = [
        prior.credit(question) - Fraction(1, len(question.options)) for question in questions
    ]
    order = sorted(range(len(questions)), key=lambda i: _hashed(questions[i].question_id))
    kept = largest_without_excess([excesses[i] for i in order])
    chosen = [questions[i] for i in sorted(order[place] for place in kept)]
    return Balanced(
        tuple(question.question_id for question in chosen),
        len(questions),
        chance(chosen) if chosen else None,
    )


def largest_without_excess(excesses: Sequence[Fraction]) -> list[int]:
    """Ascending indices of a largest subset that sums to 0; among equal values the first ones.

    Time and memory grow with the sum of absolute values in units of their common denominator: for
    90,000 questions of 2 to 4 options, where the unit is 1/12, a few seconds.
    """
    unit = Fraction(1, math.lcm(*(excess.denominator for excess in excesses)))
    places: dict[int, list[int]] = {}
    for place, excess in enumerate(excesses):
        places.setdefault(int(excess / unit), []).append(place)
    values = sorted(places)
    dropped = _fewest(
        values,
        [len(places[value]) for value in values],
        sum(value * len(places[value]) for value in values),
    )
    chosen: list[int] = []
    for value, count in zip(values, dropped, strict=True):
        chosen += places[value][: len(places[value]) - count]
    return sorted(chosen)


def _fewest(values: Sequence[int], counts: Sequence[int], target: int) -> list[int]:
    """How many of each value to take, up to its count, to reach `target` with the fewest in all.

    `target` must be reachable, as the sum of everything is. Dynamic programme over the values:
    `best[s]` is the least number that sums to s + low. Of several answers, the one with the least
    of the last value, then of the one before, and so on.
    """
    low = sum(value * count for value, count in zip(values, counts, strict=True) if value < 0)
    high = sum(value * count for value, count in zip(values, counts, strict=True) if value > 0)
    best = np.full(high - low + 1, _FAR, dtype=np.int32)
    best[-low] = 0
    stages = [best]
    for value, count in zip(values, counts, strict=True):
        stages.append(best := _with(best, value, count))
    at = target - low
    taken: list[int] = []
    for before, value, count in zip(
        stages[-2::-1], reversed(values), reversed(counts), strict=True
    ):
        here = stages[len(values) - len(taken)][at]
        number = 0 if value == 0 else _number_taken(before, here, at, value, count)
        taken.append(number)
        at -= number * value
    return taken[::-1]


def _with(best: NDArray[np.int32], value: int, count: int) -> NDArray[np.int32]:
    """Update `best` with up to `count` of `value`, in lots of 1, 2, 4, ... items."""
    if value == 0:
        return best
    lot = 1
    while count > 0:
        lot = min(lot, count)
        extended = np.full_like(best, _FAR)
        step = lot * abs(value)
        if value > 0:
            extended[step:] = best[: len(best) - step] + lot
        else:
            extended[: len(best) - step] = best[step:] + lot
        best = np.minimum(best, extended)
        count -= lot
        lot *= 2
    return best


def _number_taken(
    before: NDArray[np.int32], here: np.int32, at: int, value: int, count: int
) -> int:
    """The least number x of `value` for which before[at - x value] + x is `here`."""
    numbers = np.arange(count + 1)
    sources = at - numbers * value
    inside = (sources >= 0) & (sources < len(before))
    matches = before[sources[inside]] + numbers[inside] == here
    return int(numbers[inside][matches.argmax()])


def _hashed(question_id: str) -> bytes:
    return hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).digest()
