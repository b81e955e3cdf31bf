"""The prior-balanced subset: the prior is at chance on it, and no larger subset exists."""

import random
from fractions import Fraction
from itertools import combinations
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.scoring.balanced import balanced_subset, largest_without_excess
from stages.scoring.prior import blind_score, fit_prior
from stages.scoring.questions import Question, chance
from tests.scoring.test_prior import question_lists

CREDITS = [(Fraction(0), n) for n in (2, 3, 4)]
"""Every (credit, n) that a question with n options can have."""
for _n in (2, 3, 4):
    CREDITS += [(Fraction(1, ties), _n) for ties in range(1, _n + 1)]


@given(st.lists(st.sampled_from(CREDITS), max_size=9))
def test_no_larger_subset_is_at_chance(cases: list[tuple[Fraction, int]]) -> None:
    def at_chance(subset: tuple[int, ...]) -> bool:
        # the definition, literally: two means over the subset itself
        accuracy = sum(cases[i][0] for i in subset) / len(subset)
        chance = sum(Fraction(1, cases[i][1]) for i in subset) / len(subset)
        return accuracy == chance

    subset = tuple(largest_without_excess([credit - Fraction(1, n) for credit, n in cases]))
    largest = max(
        (
            size
            for size in range(1, len(cases) + 1)
            if any(map(at_chance, combinations(range(len(cases)), size)))
        ),
        default=0,
    )
    assert len(subset) == largest
    assert not subset or at_chance(subset)
    assert list(subset) == sorted(set(subset))


@given(st.lists(st.fractions(min_value=-2, max_value=2, max_denominator=6), max_size=10))
def test_any_excesses_are_balanced_as_brute_force_balances_them(excesses: list[Fraction]) -> None:
    subset = largest_without_excess(excesses)
    sizes = [
        size
        for size in range(len(excesses) + 1)
        if any(sum(chosen) == 0 for chosen in combinations(excesses, size))
    ]
    assert sum((excesses[i] for i in subset), Fraction()) == 0
    assert len(subset) == max(sizes)


@given(question_lists(), question_lists(least=1))
@settings(deadline=None)
def test_on_the_subset_the_prior_is_exactly_at_chance(
    train: list[Question], test: list[Question]
) -> None:
    prior = fit_prior(train)
    balanced = balanced_subset(prior, test)
    subset = [question for question in test if question.question_id in balanced.question_ids]
    assert tuple(question.question_id for question in subset) == balanced.question_ids
    assert (balanced.size, balanced.n) == (len(subset), len(test))
    if subset:
        score = blind_score(prior, subset)
        assert score.correct / score.n == score.chance == balanced.chance == chance(subset)
    else:
        assert balanced.chance is None


@given(question_lists(), question_lists(least=1))
@settings(deadline=None)
def test_where_the_knapsack_does_not_fit_the_prior_is_at_chance_too(
    train: list[Question], test: list[Question]
) -> None:
    prior = fit_prior(train)
    largest = balanced_subset(prior, test)
    for cells in (0, 40):
        with patch("stages.scoring.balanced._MAX_CELLS", cells):
            balanced = balanced_subset(prior, test)
        subset = [question for question in test if question.question_id in balanced.question_ids]
        assert balanced.size <= largest.size
        if subset:
            score = blind_score(prior, subset)
            assert score.correct / score.n == balanced.chance == chance(subset)


def test_questions_with_2_to_26_options_are_balanced_in_bounded_memory() -> None:
    rng = random.Random(0)
    counts = [rng.randint(2, 26) for _ in range(4000)]
    questions = [
        Question(str(number), tuple(map(str, range(count))), rng.randrange(count))
        for number, count in enumerate(counts)
    ]
    balanced = balanced_subset(fit_prior(questions[:2000]), questions[2000:])
    assert 0 < balanced.size < 2000
    score = blind_score(
        fit_prior(questions[:2000]),
        [question for question in questions if question.question_id in balanced.question_ids],
    )
    assert score.correct / score.n == balanced.chance


@given(question_lists(), question_lists(least=1), st.randoms(use_true_random=False))
def test_the_subset_does_not_depend_on_the_order_of_the_file(
    train: list[Question], test: list[Question], rng: random.Random
) -> None:
    prior = fit_prior(train)
    shuffled = rng.sample(test, len(test))
    assert set(balanced_subset(prior, shuffled).question_ids) == set(
        balanced_subset(prior, test).question_ids
    )


def test_the_subset_is_empty_if_the_prior_is_always_correct() -> None:
    questions = [Question(f"{i}", ("gold", "other"), 0) for i in range(5)]
    balanced = balanced_subset(fit_prior(questions), questions)
    assert (balanced.question_ids, balanced.n, balanced.chance) == ((), 5, None)


def test_an_unfitted_prior_keeps_every_question() -> None:
    questions = [
        Question("a", ("x", "y"), 0),
        Question("b", ("w", "x", "y"), 2),
        Question("c", ("w", "x", "y", "z"), 3),
    ]
    balanced = balanced_subset(fit_prior([]), questions)
    assert (balanced.question_ids, balanced.chance) == (("a", "b", "c"), Fraction(13, 36))


@pytest.mark.parametrize("right", [0, 100, 9_000])
def test_a_large_split_is_balanced_exactly(right: int) -> None:
    """Wrong answers to four options (-1/4 each) balance a third as many correct ones (+3/4)."""
    excesses = [Fraction(3, 4)] * right + [Fraction(-1, 4)] * (9_000 - right)
    assert len(largest_without_excess(excesses)) == 4 * min(right, (9_000 - right) // 3)
