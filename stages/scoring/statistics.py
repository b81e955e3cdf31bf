"""How sure an accuracy is, and a gain over the base on the same questions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


def paired_interval(after: NDArray[np.bool_], before: NDArray[np.bool_], samples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13) of mean(after) - mean(before), 95%.

    `after[i]` and `before[i]` are whether question i was answered rightly; both have shape (n,), n > 0. The questions
    are resampled `samples` times, each with both of its answers.

    A resample enters the difference only by how many of its questions were won, lost or tied, and these three counts
    are multinomial. Drawing them is the same bootstrap at a cost that does not grow with n: scipy.stats.bootstrap
    would draw n x samples indices, a thousand million for the largest test split.
    """
    n = len(after)
    won, lost = int(np.sum(after & ~before)), int(np.sum(~after & before))
    counts = np.random.default_rng(seed).multinomial(n, [won / n, lost / n, (n - won - lost) / n], size=samples)
    differences = (counts[:, 0] - counts[:, 1]) / n
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of an accuracy, 95%: `correct` right answers among `n` > 0 questions."""
    interval = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
