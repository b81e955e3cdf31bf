"""How sure an accuracy is, and a difference between two on the same questions.

Questions about one image are not independent: a policy that misreads it misses them together.
Intervals that resample images with all their questions allow for that (cluster bootstrap: Davison
and Hinkley 1997, section 3.8; Field and Welsh 2007); intervals over questions are too narrow
wherever images have several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE: Final = 0.95

_AT_ONCE: Final = 2**22
"""Counts drawn at once: 32 MiB of them."""


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: counts of discordant pairs and the two-sided p value."""

    won: int
    lost: int
    p: float


def paired_interval(
    after: NDArray[np.bool_],
    before: NDArray[np.bool_],
    samples: int,
    seed: int,
    clusters: ArrayLike | pd.Series[Any] | None = None,
) -> tuple[float, float]:
    """95% percentile bootstrap interval of mean(after) - mean(before).

    Efron and Tibshirani 1993, chapter 13.

    `after[i]` and `before[i]` are whether question i was answered rightly; both have shape (n,), n
    > 0. Questions are resampled `samples` times, each with both of its answers; with `clusters` (n
    labels, such as `image`), images are, each with all of its questions. ValueError if lengths
    differ or are 0.
    """
    if np.shape(after) != np.shape(before):
        raise ValueError(f"{np.shape(after)} answers cannot be paired with {np.shape(before)}")
    differences = np.asarray(after, dtype=np.int64) - np.asarray(before, dtype=np.int64)
    return cluster_interval(
        differences, np.arange(len(differences)) if clusters is None else clusters, samples, seed
    )


def cluster_interval(
    values: ArrayLike, clusters: ArrayLike | pd.Series[Any], samples: int, seed: int
) -> tuple[float, float]:
    """95% percentile interval of the mean of `values` (n,), resampling whole clusters.

    Values may be answers (an accuracy), differences between two checkpoints on the same questions
    (a paired difference), or anything else that is averaged. For arguments and errors see
    `bootstrap_means`.
    """
    return percentiles(bootstrap_means(values, clusters, samples, seed))


def percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95% of bootstrap draws (samples,), e.g. of a macro mean over cells."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_means(
    values: ArrayLike, clusters: ArrayLike | pd.Series[Any], samples: int, seed: int
) -> NDArray[np.float64]:
    """Means of `values` (n,) in `samples` resamples of clusters with replacement, shape (samples,).

    `clusters` (n,) labels the cluster of each value. A resample has as many clusters as there are,
    so its number of values varies: its mean is the ratio of the two sums. With few clusters, below
    some thirty, the interval is too narrow. ValueError if lengths differ or are 0, or if a label is
    missing.

    A cluster enters only by its sum and its size, and how often each such pair is drawn is
    multinomial. Drawing these counts is the same bootstrap at a cost that grows with the distinct
    pairs, a few dozen, and not with n.
    """
    array = np.asarray(values)
    codes, labels = pd.factorize(np.asarray(clusters))
    if not 0 < len(array) == len(codes):
        raise ValueError(
            f"{len(array)} values and {len(codes)} cluster labels: give as many of one as of the"
            " other, at least one"
        )
    if (codes < 0).any():
        raise ValueError(
            f"value {int((codes < 0).argmax())} has no cluster label: give each question its image"
        )
    sums, sizes = np.bincount(codes, weights=array), np.bincount(codes)
    pairs, counts = np.unique(np.column_stack([sums, sizes]), axis=0, return_counts=True)
    shares = counts / counts.sum()

    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _AT_ONCE // len(pairs))
    for start in range(0, samples, step):
        drawn = rng.multinomial(len(labels), shares, size=min(step, samples - start))
        total, size = (drawn @ pairs).T
        means[start : start + step] = total / size
    return means


def bootstrap_cells(
    cells: Sequence[tuple[ArrayLike, ArrayLike | pd.Series[Any]]], samples: int, seed: int
) -> NDArray[np.float64]:
    """Cell means in common cluster resamples, (samples, cells): the basis of macro-mean intervals.

    A cell is its values and their cluster labels. Clusters of all cells are drawn together, for an
    image asked about in two cells is misread in both. A resample in which a cell has no value has
    NaN there. ValueError without cells.
    """
    if not cells:
        raise ValueError("no cells to resample: give at least one")
    codes, labels = pd.factorize(
        np.concatenate([np.asarray(clusters, dtype=object) for _, clusters in cells])
    )
    parts = np.split(codes, np.cumsum([len(np.asarray(values)) for values, _ in cells])[:-1])
    n = len(labels)
    sums = np.column_stack(
        [
            np.bincount(part, weights=np.asarray(values), minlength=n)
            for part, (values, _) in zip(parts, cells, strict=True)
        ]
    )
    sizes = np.column_stack([np.bincount(part, minlength=n) for part in parts]).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.full((samples, len(cells)), np.nan)
    step = max(1, _AT_ONCE // n)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        size = counts @ sizes
        np.divide(counts @ sums, size, out=means[start : start + rows], where=size > 0)
    return means


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval (1927) of `correct` among `n` > 0 questions.

    `correct` need not be whole: a rule that draws among tied options has an expected number.
    ValueError unless 0 <= correct <= n.
    """
    if not (n > 0 and 0 <= correct <= n):
        raise ValueError(
            f"{correct} right answers among {n} questions: the first must lie between 0 and the"
            " second, which is above 0"
        )
    z2 = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) ** 2
    wrong = n - correct
    centre = correct + z2 / 2
    half = math.sqrt(z2 * (correct * wrong / n + z2 / 4))
    # rounding may leave a share of almost nothing below 0
    return max((centre - half) / (n + z2), 0.0) if correct else 0.0, (
        min((centre + half) / (n + z2), 1.0) if wrong else 1.0
    )


def mcnemar(after: NDArray[np.bool_], before: NDArray[np.bool_]) -> McNemar:
    """Exact McNemar test (1947) of two sides that answered the same questions, both of shape (n,).

    Under the null hypothesis a question that only one side has right is as likely the one's as the
    other's: binomial, p = 1/2. It takes questions for independent; where images have several,
    `paired_interval` with clusters is the safer word. ValueError if lengths differ.
    """
    if np.shape(after) != np.shape(before):
        raise ValueError(f"{np.shape(after)} answers cannot be paired with {np.shape(before)}")
    won, lost = int(np.sum(after & ~before)), int(np.sum(~after & before))
    return McNemar(won, lost, float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979) of a family of p values, by name; order as given.

    To reject where the adjusted value is at most alpha keeps the chance of even one false rejection
    in the family at or below alpha, whatever the tests have to do with each other. ValueError for a
    value outside 0 to 1, NaN included.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p value of {name!r} is {p}, not between 0 and 1")
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
