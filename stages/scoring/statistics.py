"""Confidence intervals and paired tests for accuracies.

Questions about one image are not independent: a policy that misreads the image misses them
together. Intervals that resample images with all their questions allow for that (cluster bootstrap:
Davison and Hinkley 1997, section 3.8; Field and Welsh 2007). Intervals over questions are too
narrow where images have several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE: Final = 0.95
QUANTILE: Final = 1.959963984540054
"""Of the standard normal distribution, at (1 + CONFIDENCE) / 2."""
SIGNIFICANCE: Final = 0.05
"""Level of the tests: an adjusted p value below it is significant."""

_COUNTS_PER_BATCH: Final = 2**22
"""Counts drawn at once, which bounds memory: 32 MiB."""


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: counts of discordant pairs and the two-sided p value."""

    won: int
    lost: int
    p: float


def is_significant(adjusted_p: float) -> bool:
    """Whether a p value, adjusted over its family, is below `SIGNIFICANCE`."""
    return adjusted_p < SIGNIFICANCE


def paired_interval(
    after: NDArray[np.bool_],
    before: NDArray[np.bool_],
    samples: int,
    seed: int,
    clusters: ArrayLike | pd.Series[Any] | None = None,
) -> tuple[float, float]:
    """95% percentile bootstrap interval of mean(after) - mean(before).

    `after[i]` and `before[i]` state whether question i was answered correctly; both have shape
    (n,), n > 0. Questions are resampled `samples` times with both of their answers; with `clusters`
    (n labels, such as `image`), whole clusters are resampled. Raises ValueError if lengths differ
    or are 0. Source: Efron and Tibshirani 1993, chapter 13.
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

    Values may be correctness (for an accuracy), differences between two checkpoints on the same
    questions (for a paired difference), or anything else that is averaged. For arguments and errors
    see `bootstrap_means`.
    """
    return percentiles(bootstrap_means(values, clusters, samples, seed))


def percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The central 95% of bootstrap draws (samples,), for example of a macro mean over cells."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_means(
    values: ArrayLike, clusters: ArrayLike | pd.Series[Any], samples: int, seed: int
) -> NDArray[np.float64]:
    """Means of `values` (n,) in `samples` resamples of clusters with replacement, shape (samples,).

    `clusters` (n,) labels the cluster of each value. Every resample has the original number of
    clusters, so its number of values varies: its mean is a ratio of two sums. With fewer than about
    thirty clusters the interval is too narrow. Raises ValueError if lengths differ or are 0, or if
    a label is missing.

    A cluster matters only by its sum and its size, and the number of times each distinct pair is
    drawn is multinomial. Drawing these counts is the same bootstrap, at a cost that grows with the
    number of distinct pairs (a few dozen) and not with n.
    """
    import pandas as pd  # the blind baselines, which need no intervals by cluster, start without

    array = np.asarray(values)
    codes, labels = pd.factorize(np.asarray(clusters))
    if not 0 < len(array) == len(codes):
        raise ValueError(
            f"{len(array)} values and {len(codes)} cluster labels: give equally many of both, at"
            " least one"
        )
    if (codes < 0).any():
        raise ValueError(
            f"value {int((codes < 0).argmax())} has no cluster label: label each question with its"
            " image"
        )
    sums = np.bincount(codes, weights=array)
    sizes = np.bincount(codes)
    pairs, counts = np.unique(np.column_stack([sums, sizes]), axis=0, return_counts=True)
    probabilities = counts / counts.sum()

    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _COUNTS_PER_BATCH // len(pairs))
    for start in range(0, samples, step):
        # (batch, pairs): how often each pair (sum, size) is drawn per resample
        drawn = rng.multinomial(len(labels), probabilities, size=min(step, samples - start))
        total, size = (drawn @ pairs).T
        means[start : start + step] = total / size
    return means


def bootstrap_cells(
    cells: Sequence[tuple[ArrayLike, ArrayLike | pd.Series[Any]]], samples: int, seed: int
) -> NDArray[np.float64]:
    """Cell means in common cluster resamples, (samples, cells): the basis of macro-mean intervals.

    A cell is a pair of values and their cluster labels. Clusters of all cells are drawn together,
    because an image with questions in two cells is misread in both. Where a resample has no value
    in a cell, its mean is NaN. Raises ValueError without cells.
    """
    if not cells:
        raise ValueError("no cells to resample: give at least one")
    import pandas as pd

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
    step = max(1, _COUNTS_PER_BATCH // n)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        # row r draws clusters r * n to r * n + n - 1, so one bincount counts all rows
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        size = counts @ sizes
        np.divide(counts @ sums, size, out=means[start : start + rows], where=size > 0)
    return means


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval (1927) of `correct` among `n` > 0 questions.

    `correct` may be fractional: the expected number of a rule that draws among tied options. Raises
    ValueError unless 0 <= correct <= n.
    """
    if not (n > 0 and 0 <= correct <= n):
        raise ValueError(
            f"{correct} correct answers among {n} questions: expected n > 0 and 0 <= correct <= n"
        )
    z2 = QUANTILE**2
    wrong = n - correct
    centre = correct + z2 / 2
    half = math.sqrt(z2 * (correct * wrong / n + z2 / 4))
    # clipped, as rounding may put a share near 0 below it
    low = max((centre - half) / (n + z2), 0.0) if correct else 0.0
    high = min((centre + half) / (n + z2), 1.0) if wrong else 1.0
    return low, high


def mcnemar(after: NDArray[np.bool_], before: NDArray[np.bool_]) -> McNemar:
    """Exact McNemar test (1947) of two sets of answers to the same questions, both of shape (n,).

    Under the null hypothesis, a question that only one side answers correctly is equally likely to
    be either's: binomial, p = 1/2. The test treats questions as independent; where images have
    several, prefer `paired_interval` with clusters. Raises ValueError if lengths differ.
    """
    if np.shape(after) != np.shape(before):
        raise ValueError(f"{np.shape(after)} answers cannot be paired with {np.shape(before)}")
    won = int(np.sum(after & ~before))
    lost = int(np.sum(~after & before))
    if not won + lost:
        return McNemar(won, lost, 1.0)
    from scipy import stats  # takes most of a second, and only the report compares

    return McNemar(won, lost, float(stats.binomtest(won, won + lost).pvalue))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979) of a family of p values by name, in the order given.

    Rejecting where the adjusted value is at most alpha bounds the probability of any false
    rejection in the family by alpha, however the tests depend on each other. Raises ValueError for
    a value outside 0 to 1 or NaN.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p value of {name!r} is {p}, not between 0 and 1")
    adjusted = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
