"""Intervals against scipy, a plain loop, and each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from stages.scoring.statistics import paired_interval, wilson_interval

Answers = NDArray[np.bool_]


def answers(n: int, before: float, after: float, seed: int) -> tuple[Answers, Answers]:
    rng = np.random.default_rng(seed)
    return rng.random(n) < after, rng.random(n) < before


@pytest.mark.parametrize(("n", "before", "after"), [(40, 0.3, 0.6), (200, 0.5, 0.5), (1000, 0.7, 0.65)])
def test_the_paired_interval_is_scipys_percentile_bootstrap(n: int, before: float, after: float) -> None:
    won, lost = answers(n, before, after, seed=1)
    low, high = paired_interval(won, lost, samples=20_000, seed=7)
    differences = won.astype(float) - lost
    reference = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, batch=500, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    # two quantiles of 20,000 draws each, on a lattice of step 1/n
    tolerance = 0.06 * float(differences.std()) / np.sqrt(n) + 1.01 / n
    assert low == pytest.approx(reference.low, abs=tolerance)
    assert high == pytest.approx(reference.high, abs=tolerance)


def test_the_paired_interval_is_that_of_resampled_questions() -> None:
    won, lost = answers(30, 0.2, 0.7, seed=5)
    rng = np.random.default_rng(11)
    means = []
    for _ in range(20_000):
        chosen = rng.integers(30, size=30)
        means.append(won[chosen].mean() - lost[chosen].mean())
    assert paired_interval(won, lost, samples=20_000, seed=2) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.034)


def test_pairing_makes_the_interval_narrower_when_answers_agree() -> None:
    lost = np.arange(100) < 40
    won = np.arange(100) < 50
    paired = paired_interval(won, lost, samples=5000, seed=1)
    apart = paired_interval(won, lost[::-1].copy(), samples=5000, seed=1)
    assert paired[1] - paired[0] < 0.5 * (apart[1] - apart[0])


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly() -> None:
    won, lost = answers(300, 0.4, 0.5, seed=9)
    first = paired_interval(won, lost, samples=5000, seed=1)
    assert paired_interval(won, lost, samples=5000, seed=1) == first
    assert paired_interval(won, lost, samples=5000, seed=2) == pytest.approx(first, abs=0.01)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_interval_holds_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    won, lost = (np.array(side, dtype=bool) for side in zip(*pairs, strict=True))
    low, high = paired_interval(won, lost, samples=2000, seed=1)
    assert -1 <= low <= won.mean() - lost.mean() <= high <= 1


@pytest.mark.parametrize(("won", "difference"), [(True, 1.0), (False, 0.0)])
def test_answers_that_do_not_vary_give_an_interval_without_width(won: bool, difference: float) -> None:
    assert paired_interval(np.full(9, won), np.zeros(9, dtype=bool), samples=200, seed=1) == (difference, difference)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(300):
        won, lost = answers(150, 0.4, 0.55, seed)
        low, high = paired_interval(won, lost, samples=500, seed=1)
        covered += low <= 0.15 <= high
    assert 0.90 <= covered / 300 <= 0.99


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (7, 20), (431, 1000)])
def test_wilsons_interval_is_his_formula(correct: int, n: int) -> None:
    z = stats.norm.ppf(0.975)
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert wilson_interval(correct, n) == pytest.approx((centre - half, centre + half), abs=1e-12)
