"""The blind prior: what it counts, what it ignores, and its command."""

import json
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import ExitCode, InputError
from stages.corpus.dataset.problems import format_problem, format_solution
from stages.scoring import prior as command
from stages.scoring.prior import blind_credits, blind_score, fit_prior, normalise, pool
from stages.scoring.questions import Question, as_questions
from tests.conftest import RunStage

WORDS = ["Cyst", "cyst.", "Nodule", "X-ray", "x_ray.", "CT", "Chest", "No"]


@st.composite
def question_lists(draw: st.DrawFn, least: int = 0) -> list[Question]:
    texts = draw(
        st.lists(
            st.lists(st.sampled_from(WORDS), min_size=2, max_size=4), min_size=least, max_size=12
        )
    )
    return [
        Question(f"q{i}", tuple(options), draw(st.integers(0, len(options) - 1)))
        for i, options in enumerate(texts)
    ]


def permuted(question: Question, rng: random.Random) -> Question:
    order = rng.sample(range(len(question.options)), len(question.options))
    return Question(
        question.question_id, tuple(question.options[i] for i in order), order.index(question.gold)
    )


def test_rates_are_the_smoothed_counts() -> None:
    prior = fit_prior(
        [
            Question("1", ("Cyst", "CT"), 0),
            Question("2", ("cyst.", "CT", "Chest"), 2),
            Question("3", ("CT", "No"), 0),
        ]
    )
    assert prior.rate("CYST") == 1.25 / 3
    assert prior.rate("CT") == 1.25 / 4
    assert prior.rate("Chest") == 1.25 / 2
    assert prior.rate("No") == 0.25 / 2
    assert prior.rate("never seen") == 0.25
    assert prior.favourites(("No", "CT", "Chest")) == [2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("X-ray", "x_ray."),
        ("Cyst", " cyst .  "),
        ("Common bile duct", "common  Bile-Duct"),
        ("STRASSE", "straße"),
    ],
)
def test_spellings_of_one_text_count_as_one(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_texts_as_written_reveal_more_than_normalised_ones() -> None:
    questions = [
        Question(f"{i}", ("kidney", "Liver") if i % 2 else ("Kidney", "liver"), 0 if i % 2 else 1)
        for i in range(10)
    ]
    assert blind_score(fit_prior(questions), questions).accuracy == 0.5
    assert blind_score(fit_prior(questions, exact=True), questions).accuracy == 1.0


def test_an_unfitted_prior_is_at_chance() -> None:
    questions = [Question("a", ("x", "y"), 0), Question("b", ("w", "x", "y", "z"), 3)]
    score = blind_score(fit_prior([]), questions)
    assert score.correct / score.n == score.chance == Fraction(3, 8)


def test_equal_rates_from_different_counts_tie() -> None:
    train = [Question("1", ("Cyst", "a"), 1)] * 9 + [Question("2", ("Cyst", "b"), 0)] * 3
    # (3 + 1/4) / (12 + 1) is 1/4
    assert fit_prior(train).favourites(("Cyst", "never seen")) == [0, 1]


@given(question_lists(), question_lists(least=1), st.integers(0, 99), st.booleans())
def test_the_order_of_options_changes_no_accuracy(
    train: list[Question], test: list[Question], seed: int, exact: bool
) -> None:
    rng = random.Random(seed)
    before = blind_score(fit_prior(train, exact=exact), test)
    after = blind_score(
        fit_prior([permuted(q, rng) for q in train], exact=exact), [permuted(q, rng) for q in test]
    )
    assert after == before


@given(
    question_lists(), question_lists(least=1), st.text(max_size=20), st.text("abc? ", max_size=20)
)
def test_images_and_wording_change_nothing(
    train: list[Question], test: list[Question], image: str, wording: str
) -> None:
    def published(questions: list[Question], image: str, wording: str) -> list[dict[str, str]]:
        return [
            {
                "image": image,
                "problem": format_problem(wording, question.options),
                "solution": format_solution(question.letter),
            }
            for question in questions
        ]

    def score(image: str, wording: str) -> Any:
        fitted = fit_prior(as_questions(published(train, image, wording), "train") if train else [])
        return blind_score(fitted, as_questions(published(test, image, wording), "test"))

    assert score(image, wording) == score("a.png", "What is it?")


@given(question_lists(), question_lists(least=1))
def test_shared_credit_is_the_expectation_of_a_fair_draw(
    train: list[Question], test: list[Question]
) -> None:
    prior = fit_prior(train)
    for question in test:
        drawn = [choice == question.gold for choice in prior.favourites(question.options)]
        assert prior.credit(question) == Fraction(sum(drawn), len(drawn))
    credits = blind_credits(prior, test)
    score = blind_score(prior, test)
    assert sum(credits.values()) == pytest.approx(float(score.correct))
    assert 0 <= score.interval[0] <= score.accuracy <= score.interval[1] <= 1


@given(question_lists(), question_lists(), st.booleans())
def test_pooled_splits_are_fitted_as_one(
    first: list[Question], second: list[Question], exact: bool
) -> None:
    assert pool([fit_prior(first, exact=exact), fit_prior(second, exact=exact)]) == fit_prior(
        [*first, *second], exact=exact
    )


def test_priors_with_different_counting_rules_are_not_pooled() -> None:
    for priors in ([fit_prior([]), fit_prior([], exact=True)], []):
        with pytest.raises(ValueError, match="all or none"):
            pool(priors)


def test_the_prior_exploits_distractors_that_are_never_gold() -> None:
    rng = np.random.default_rng(4)
    golds = [f"gold {i}" for i in range(6)]
    others = [f"other {i}" for i in range(60)]
    options = [
        tuple(rng.permutation([rng.choice(golds), *rng.choice(others, 3, replace=False)]).tolist())
        for _ in range(800)
    ]
    telling = [
        Question(f"{i}", texts, next(j for j, t in enumerate(texts) if t.startswith("gold")))
        for i, texts in enumerate(options)
    ]
    shuffled = [
        Question(question.question_id, question.options, int(rng.integers(4)))
        for question in telling
    ]
    assert blind_score(fit_prior(telling[:400]), telling[400:]).accuracy > 0.99
    low, high = blind_score(fit_prior(shuffled[:400]), shuffled[400:]).interval
    assert low < 0.25 < high


def write(path: Path, options: list[tuple[list[str], str]]) -> str:
    items = [
        {
            "image": "a.png",
            "problem": format_problem("What?", texts),
            "solution": format_solution(gold),
        }
        for texts, gold in options
    ]
    path.write_text(json.dumps(items))
    return str(path)


def test_the_command_prints_accuracy_count_chance_and_interval(
    tmp_path: Path, run: RunStage, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "train.json", [(["Cyst", "CT, plain", "No"], "B")] * 3)
    test = write(tmp_path / "test.json", [(["No", "CT, plain"], "B"), (["new", "newer"], "A")])
    run(command, "--train", train, "--test", test)
    out = capsys.readouterr().out
    assert "accuracy    75.00% (1.5 of n = 2), 95% Wilson interval 19.79% to 97.33%" in out
    assert "chance      50.00%" in out
    assert "3 questions, 3 option texts, 1 of them ever gold" in out


def test_the_command_reports_bad_input_in_one_line_with_its_exit_code(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [(["Cyst", "CT"], "C")])
    process = subprocess.run(
        [sys.executable, "-m", "stages.scoring.prior", "--train", train, "--test", train],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == ExitCode.INPUT
    assert process.stderr.startswith(f"error: {train}, record 0: gold 'C'")
    assert process.stderr.count("\n") == 1


def test_the_command_needs_both_files(tmp_path: Path, run: RunStage) -> None:
    with pytest.raises(InputError, match="is missing"):
        run(command, "--train", str(tmp_path / "a.json"), "--test", str(tmp_path / "b.json"))
