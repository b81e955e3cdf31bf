"""Types of published numbers: each has its source and a caveat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from stages.taxonomy import Axis

Unit = Literal["percent", "percentage points", "relative percent"]
"""An accuracy; a difference of two accuracies; a difference relative to the smaller accuracy."""


@dataclass(frozen=True)
class Published:
    """One published number: subject, measure, value, source and caveat.

    `axis` is that of the released test splits that it is about, empty if it is about other
    questions.
    """

    subject: str
    measure: str
    value: float
    unit: Unit
    source: str
    caveat: str
    axis: Axis | Literal[""] = ""


@dataclass(frozen=True)
class PublishedTable:
    """A published table: `values[i][j]` is trained on `cells[i]` and tested on `cells[j]`."""

    measure: str
    cells: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    unit: Unit
    source: str
    caveat: str

    def at(self, trained: str, tested: str) -> float:
        """The published value for one pair of cells, by slug."""
        return self.values[self.cells.index(trained)][self.cells.index(tested)]

    @property
    def in_domain(self) -> float:
        """Mean of the diagonal: tested on the cell trained on."""
        return _mean([row[i] for i, row in enumerate(self.values)])

    @property
    def cross_domain(self) -> float:
        """Mean off the diagonal."""
        others = [(*row[:i], *row[i + 1 :]) for i, row in enumerate(self.values)]
        return _mean(list(chain.from_iterable(others)))

    @property
    def mean(self) -> float:
        """Mean of all cells."""
        return _mean(list(chain.from_iterable(self.values)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
