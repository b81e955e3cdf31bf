"""Intervals and tests, compared with SciPy, plain loops and each other."""

import time
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from stages.scoring.statistics import (
    CONFIDENCE,
    QUANTILE,
    bootstrap_cells,
    bootstrap_means,
    cluster_interval,
    holm,
    mcnemar,
    paired_interval,
    percentiles,
    wilson_interval,
)

Answers = NDArray[np.bool_]


def answers(n: int, before: float, after: float, seed: int) -> tuple[Answers, Answers]:
    rng = np.random.default_rng(seed)
    return rng.random(n) < after, rng.random(n) < before


@pytest.mark.parametrize(
    ("n", "before", "after"), [(40, 0.3, 0.6), (200, 0.5, 0.5), (1000, 0.7, 0.65)]
)
def test_the_paired_interval_agrees_with_scipys_percentile_bootstrap(
    n: int, before: float, after: float
) -> None:
    won, lost = answers(n, before, after, seed=1)
    low, high = paired_interval(won, lost, samples=20_000, seed=7)
    differences = won.astype(float) - lost
    reference = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=20_000,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    # two quantiles of 20,000 draws each, on a lattice of step 1/n
    tolerance = 0.06 * float(differences.std()) / np.sqrt(n) + 1.01 / n
    assert low == pytest.approx(reference.low, abs=tolerance)
    assert high == pytest.approx(reference.high, abs=tolerance)


def test_the_paired_interval_agrees_with_a_loop_over_resampled_questions() -> None:
    won, lost = answers(30, 0.2, 0.7, seed=5)
    rng = np.random.default_rng(11)
    means = []
    for _ in range(20_000):
        chosen = rng.integers(30, size=30)
        means.append(won[chosen].mean() - lost[chosen].mean())
    assert paired_interval(won, lost, samples=20_000, seed=2) == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975])), abs=0.034
    )


def test_pairing_makes_the_interval_narrower_when_answers_agree() -> None:
    lost = np.arange(100) < 40
    won = np.arange(100) < 50
    paired = paired_interval(won, lost, samples=5000, seed=1)
    opposed = paired_interval(won, lost[::-1].copy(), samples=5000, seed=1)
    assert paired[1] - paired[0] < 0.5 * (opposed[1] - opposed[0])


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly() -> None:
    won, lost = answers(300, 0.4, 0.5, seed=9)
    first = paired_interval(won, lost, samples=5000, seed=1)
    assert paired_interval(won, lost, samples=5000, seed=1) == first
    assert paired_interval(won, lost, samples=5000, seed=2) == pytest.approx(first, abs=0.01)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_interval_contains_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    won, lost = (np.array(side, dtype=bool) for side in zip(*pairs, strict=True))
    low, high = paired_interval(won, lost, samples=2000, seed=1)
    assert -1 <= low <= won.mean() - lost.mean() <= high <= 1


@pytest.mark.parametrize(("won", "difference"), [(True, 1.0), (False, 0.0)])
def test_constant_answers_give_an_interval_without_width(won: bool, difference: float) -> None:
    assert paired_interval(np.full(9, won), np.zeros(9, dtype=bool), samples=200, seed=1) == (
        difference,
        difference,
    )


def test_the_interval_has_about_its_nominal_coverage() -> None:
    covered = 0
    for seed in range(300):
        won, lost = answers(150, 0.4, 0.55, seed)
        low, high = paired_interval(won, lost, samples=500, seed=1)
        covered += low <= 0.15 <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_the_quantile_of_wilsons_interval_is_scipys() -> None:
    assert stats.norm.ppf((1 + CONFIDENCE) / 2) == QUANTILE


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (7, 20), (431, 1000)])
def test_wilsons_interval_agrees_with_the_formula(correct: int, n: int) -> None:
    z = stats.norm.ppf(0.975)
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert wilson_interval(correct, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (7, 20), (17_661, 17_662)]
)
def test_wilsons_interval_agrees_with_scipy(correct: int, n: int) -> None:
    reference = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


@given(st.integers(1, 50_000), st.floats(0, 1))
@example(12, 1e-16)
def test_wilsons_interval_contains_the_accuracy_and_stays_between_0_and_1(
    n: int, share: float
) -> None:
    low, high = wilson_interval(share * n, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5), (float("nan"), 5)])
def test_impossible_counts_have_no_interval(correct: float, n: int) -> None:
    with pytest.raises(ValueError, match="correct answers among"):
        wilson_interval(correct, n)


def clustered(images: int, each: int, seed: int) -> tuple[Answers, Answers, NDArray[np.str_]]:
    """Answers to up to `each` questions per image, mostly correct or wrong together."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), rng.integers(1, each + 1, size=images))
    sides = [
        np.where(
            rng.random(len(image)) < 0.8,
            (rng.random(images) < share)[image],
            rng.random(len(image)) < share,
        )
        for share in (0.7, 0.5)
    ]
    return sides[0], sides[1], np.char.add("image ", image.astype(str))


def test_the_cluster_interval_agrees_with_a_loop_over_resampled_images() -> None:
    after, before, image = clustered(40, 5, seed=3)
    members = [np.flatnonzero(image == name) for name in np.unique(image)]
    rng = np.random.default_rng(8)
    means = []
    for _ in range(10_000):
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        means.append(after[chosen].mean() - before[chosen].mean())
    assert paired_interval(after, before, 10_000, 1, image) == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975])), abs=0.012
    )


def test_clusters_of_one_size_agree_with_scipys_bootstrap_of_cluster_means() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(60, 1)) + rng.normal(size=(60, 3))
    reference = stats.bootstrap(
        (values.mean(axis=1),), np.mean, n_resamples=20_000, method="percentile", rng=rng
    ).confidence_interval
    interval = cluster_interval(values.ravel(), np.repeat(np.arange(60), 3), 20_000, 5)
    assert interval == pytest.approx((reference.low, reference.high), abs=0.015)


def test_resampling_images_widens_the_interval() -> None:
    after, before, image = clustered(400, 6, seed=4)
    by_question = paired_interval(after, before, 4000, 1)
    by_image = paired_interval(after, before, 4000, 1, image)
    assert by_image[1] - by_image[0] > 1.3 * (by_question[1] - by_question[0])


def test_only_the_cluster_interval_has_its_nominal_coverage_for_clustered_answers() -> None:
    covered = {"image": 0, "question": 0}
    for seed in range(300):
        after, before, image = clustered(120, 6, seed)
        for unit, clusters in {"image": image, "question": None}.items():
            low, high = paired_interval(after, before, 400, 1, clusters)
            covered[unit] += low <= 0.2 <= high
    assert 0.90 <= covered["image"] / 300 <= 0.99
    assert covered["question"] / 300 < 0.85


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40)
)
def test_single_question_clusters_equal_questions_and_labels_do_not_matter(
    rows: list[tuple[bool, bool, int]],
) -> None:
    after, before = (np.array(side, dtype=bool) for side in list(zip(*rows, strict=True))[:2])
    assert paired_interval(
        after, before, 300, 1, [f"{i}" for i in range(len(rows))]
    ) == paired_interval(after, before, 300, 1)
    image = [row[2] for row in rows]
    low, high = paired_interval(after, before, 300, 1, image)
    assert paired_interval(after, before, 300, 1, [f"image {number}" for number in image]) == (
        low,
        high,
    )
    assert -1 <= low <= high <= 1


def test_the_draws_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    after, _, image = clustered(50, 4, seed=6)
    whole = bootstrap_means(after, image, 1000, 7)
    monkeypatch.setattr("stages.scoring.statistics._COUNTS_PER_BATCH", 64)
    assert np.array_equal(bootstrap_means(after, image, 1000, 7), whole)


def test_draws_of_several_cells_make_a_macro_interval() -> None:
    cells = [clustered(200, 4, seed) for seed in (1, 2)]
    draws = np.mean(
        [bootstrap_means(after, image, 4000, seed) for seed, (after, _, image) in enumerate(cells)],
        axis=0,
    )
    low, high = percentiles(draws)
    widths = [
        np.subtract(*cluster_interval(after, image, 4000, 1)[::-1]) for after, _, image in cells
    ]
    assert low < np.mean([after.mean() for after, _, _ in cells]) < high
    assert high - low == pytest.approx(np.hypot(*widths) / 2, rel=0.1)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "0 values and 0 cluster labels"),
        ([1, 0], ["a"], "2 values and 1"),
        ([1, 0], ["a", None], "value 1 has no cluster label"),
    ],
)
def test_values_without_clusters_are_refused(
    values: list[int], clusters: list[str | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_means(values, np.array(clusters, dtype=object), 10, 1)


def test_sides_of_different_length_are_refused() -> None:
    for compare in (mcnemar, lambda after, before: paired_interval(after, before, 10, 1)):
        with pytest.raises(ValueError, match="cannot be paired"):
            compare(np.ones(3, dtype=bool), np.ones(2, dtype=bool))


def test_fourteen_checkpoints_of_eighteen_thousand_answers_take_seconds() -> None:
    rng = np.random.default_rng(0)
    image = [f"data/images/ct/{number:06d}.png" for number in rng.integers(9000, size=18_000)]
    base = rng.random(18_000) < 0.5
    start = time.perf_counter()
    for _ in range(14):
        paired_interval(rng.random(18_000) < 0.6, base, 10_000, 42, image)
    assert time.perf_counter() - start < 20  # 2 s on two idle cores


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_tail_of_the_discordant_questions(
    pairs: list[tuple[bool, bool]],
) -> None:
    after, before = (np.array(side, dtype=bool) for side in zip(*pairs, strict=True))
    test = mcnemar(after, before)
    assert test.won == sum(a and not b for a, b in pairs)
    assert test.lost == sum(b and not a for a, b in pairs)
    discordant = test.won + test.lost
    tail = 2 * stats.binom.cdf(min(test.won, test.lost), discordant, 0.5) if discordant else 1.0
    assert test.p == pytest.approx(min(1.0, tail))
    assert mcnemar(before, after).p == pytest.approx(test.p)


def test_mcnemar_reproduces_a_published_example() -> None:
    """Agresti (1990), table 10.1: approval of a premier, 150 against 86 who changed their minds."""
    after = np.arange(236) < 150
    before = np.arange(236) >= 150
    assert mcnemar(after, before).p == pytest.approx(3.7e-5, rel=0.02)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=6))
def test_holm_agrees_with_the_closed_bonferroni_test(p_values: dict[str, float]) -> None:
    """Holm is the closure of Bonferroni: rejected if every containing family rejects."""
    adjusted_values = holm(p_values)
    families = list(
        chain.from_iterable(combinations(p_values, size) for size in range(1, len(p_values) + 1))
    )
    for name, adjusted in adjusted_values.items():
        closed = max(
            min(1.0, len(family) * min(p_values[each] for each in family))
            for family in families
            if name in family
        )
        assert adjusted == pytest.approx(closed)
    assert list(adjusted_values) == list(p_values)


def test_holm_steps_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {}


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_invalid_p_values_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p value of 'a'"):
        holm({"a": p})


def test_cells_are_resampled_together_and_each_as_if_alone() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2, 400)
    images = rng.integers(0, 150, 400)
    draws = bootstrap_cells(
        [(values, images), (values, images), (values[:100], images[:100])], 3000, 1
    )
    assert (draws[:, 0] == draws[:, 1]).all(), "one resample draws the same images in all cells"
    assert percentiles(draws[:, 0]) == pytest.approx(
        cluster_interval(values, images, 3000, 2), abs=0.01
    )
    assert draws[:, 2].std() > draws[:, 0].std()
    with pytest.raises(ValueError, match="no cells"):
        bootstrap_cells([], 100, 1)


def test_a_cell_without_values_in_a_resample_has_no_mean() -> None:
    draws = bootstrap_cells([([1, 0, 1, 1], list("abcd")), ([1], ["a"])], 500, 1)
    assert not np.isnan(draws[:, 0]).any()
    assert 0.2 < np.isnan(draws[:, 1]).mean() < 0.45
