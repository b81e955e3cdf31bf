"""The subset on which the blind prior is at chance: it is, and none is larger."""

import random
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.scoring.balanced import balanced_subset, largest_without_excess
from stages.scoring.prior import blind_score, fit_prior
from stages.scoring.questions import Question, chance
from tests.scoring.test_prior import question_lists

CREDITS = [
    (credit, n)
    for n in (2, 3, 4)
    for credit in [Fraction(0), *(Fraction(1, k) for k in range(1, n + 1))]
]
"""Every credit that a question with n options can earn."""


@given(st.lists(st.sampled_from(CREDITS), max_size=9))
def test_no_larger_subset_is_at_chance(cases: list[tuple[Fraction, int]]) -> None:
    def at_chance(
        subset: tuple[int, ...],
    ) -> bool:  # the definition, word for word: two means over the subset itself
        found, guessed = zip(
            *[(cases[i][0], Fraction(1, cases[i][1])) for i in subset], strict=True
        )
        return bool(sum(found) / len(subset) == sum(guessed) / len(subset))

    kept = tuple(largest_without_excess([credit - Fraction(1, n) for credit, n in cases]))
    largest = max(
        (
            size
            for size in range(1, len(cases) + 1)
            if any(map(at_chance, combinations(range(len(cases)), size)))
        ),
        default=0,
    )
    assert len(kept) == largest
    assert not kept or at_chance(kept)
    assert list(kept) == sorted(set(kept))


@given(st.lists(st.fractions(min_value=-2, max_value=2, max_denominator=6), max_size=10))
def test_any_excesses_are_balanced_as_brute_force_balances_them(excesses: list[Fraction]) -> None:
    kept = largest_without_excess(excesses)
    sizes = [
        size
        for size in range(len(excesses) + 1)
        if any(sum(chosen) == 0 for chosen in combinations(excesses, size))
    ]
    assert sum((excesses[i] for i in kept), Fraction()) == 0
    assert len(kept) == max(sizes)


@given(question_lists(), question_lists(least=1))
@settings(deadline=None)
def test_on_the_subset_the_prior_is_exactly_at_chance(
    train: list[Question], test: list[Question]
) -> None:
    prior = fit_prior(train)
    found = balanced_subset(prior, test)
    kept = [question for question in test if question.question_id in found.question_ids]
    assert tuple(question.question_id for question in kept) == found.question_ids
    assert (found.size, found.n) == (len(kept), len(test))
    if kept:
        score = blind_score(prior, kept)
        assert score.correct / score.n == score.chance == found.chance == chance(kept)
    else:
        assert found.chance is None


@given(question_lists(), question_lists(least=1), st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_choose(
    train: list[Question], test: list[Question], rng: random.Random
) -> None:
    prior = fit_prior(train)
    shuffled = rng.sample(test, len(test))
    assert set(balanced_subset(prior, shuffled).question_ids) == set(
        balanced_subset(prior, test).question_ids
    )


def test_a_split_that_the_prior_has_all_right_leaves_nothing() -> None:
    questions = [Question(f"{i}", ("gold", "other"), 0) for i in range(5)]
    found = balanced_subset(fit_prior(questions), questions)
    assert (found.question_ids, found.n, found.chance) == ((), 5, None)


def test_a_prior_that_knows_nothing_leaves_everything() -> None:
    questions = [
        Question("a", ("x", "y"), 0),
        Question("b", ("w", "x", "y"), 2),
        Question("c", ("w", "x", "y", "z"), 3),
    ]
    found = balanced_subset(fit_prior([]), questions)
    assert (found.question_ids, found.chance) == (("a", "b", "c"), Fraction(13, 36))


@pytest.mark.parametrize("right", [0, 100, 9_000])
def test_a_large_split_is_balanced_exactly(right: int) -> None:
    """Nine wrong of four options (-1/4 each) allow three right (+3/4 each), whatever the size."""
    excesses = [Fraction(3, 4)] * right + [Fraction(-1, 4)] * (9_000 - right)
    assert len(largest_without_excess(excesses)) == 4 * min(right, (9_000 - right) // 3)
