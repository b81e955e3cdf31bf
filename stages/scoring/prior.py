"""The blind prior: how far option texts alone lead, without image or question.

    python -m stages.scoring.prior --train TRAIN.json --test TEST.json

It counts, in a train split, how often each option text is offered and how often it is gold, and
picks the option with the highest smoothed rate, (gold + 1/4) / (offered + 1): a text never seen has
the rate of one option among four. Distractors of OmniMedVQA come from a vocabulary that is seldom
gold, so this blind baseline is high: an accuracy that does not clear it is no evidence that the
image was used.

Texts are counted normalised (`normalise`), or with `exact` as they are written, which is what a
model reads and gives away more: in the published ultrasound questions gold is "kidney" and the
distractor "Kidney", each without exception.

Options that tie share the credit: k tied options, gold among them, count as 1/k of a right answer,
the expectation of a fair draw. So the order of the options makes no difference, nothing is drawn,
and a question of which the rule knows nothing contributes exactly chance.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from stages.core.cli import run_stage
from stages.scoring.questions import Question, chance, read_questions
from stages.scoring.statistics import wilson_interval

PSEUDO_GOLD: Final = 0.25
PSEUDO_OFFERED: Final = 1.0
"""One option more, seen being gold a quarter of the time. Both are exact in binary, so that equal
rates are equal floats.
"""

_APART = re.compile(r"[\s_-]+")


@dataclass(frozen=True)
class Prior:
    """Counts: option text (normalised unless `exact`) -> times gold, times offered."""

    gold: Counter[str]
    offered: Counter[str]
    exact: bool = False

    def rate(self, text: str) -> float:
        """Smoothed frequency with which `text` was gold when offered, in (0, 1)."""
        key = _key(text, self.exact)
        return (self.gold[key] + PSEUDO_GOLD) / (self.offered[key] + PSEUDO_OFFERED)

    def favourites(self, options: Sequence[str]) -> list[int]:
        """Indices of the options with the highest rate: one, or several that tie."""
        rates = [self.rate(text) for text in options]
        best = max(rates)
        return [index for index, rate in enumerate(rates) if rate == best]

    def credit(self, question: Question) -> Fraction:
        """The probability that the rule answers rightly, ties drawn fairly: 0, 1, or 1/k."""
        favourites = self.favourites(question.options)
        return Fraction(question.gold in favourites, len(favourites))


@dataclass(frozen=True)
class BlindScore:
    """Expected right answers of a rule among `n` questions, and expected accuracy of guessing."""

    correct: Fraction
    n: int
    chance: Fraction

    @property
    def accuracy(self) -> float:
        """Expected accuracy, 0 to 1."""
        return float(self.correct / self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval, slightly too wide where ties share credit."""
        return wilson_interval(float(self.correct), self.n)


def normalise(text: str) -> str:
    """Normalise an option text: case, trailing full stops, blanks, hyphens and underscores.

    "x_ray." is "X-ray".
    """
    return _APART.sub(" ", text).strip(" .").casefold()


def fit_prior(questions: Iterable[Question], *, exact: bool = False) -> Prior:
    """Count the options of train questions, as they are written if `exact`.

    Without any question, all options tie: chance.
    """
    gold: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    for question in questions:
        texts = [_key(text, exact) for text in question.options]
        offered.update(texts)
        gold[texts[question.gold]] += 1
    return Prior(gold, offered, exact)


def pool(priors: Sequence[Prior]) -> Prior:
    """The prior of one or more train splits together, as if fitted on all their questions.

    Pool within one axis only: the two axes are independent draws, so the train splits of one hold
    test questions of the other. ValueError without priors, or if only some are `exact`.
    """
    if len({prior.exact for prior in priors}) != 1:
        raise ValueError(
            "give at least one prior, and only such as count texts alike: all exact, or none"
        )
    gold: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    for prior in priors:
        gold.update(prior.gold)
        offered.update(prior.offered)
    return Prior(gold, offered, priors[0].exact)


def blind_score(prior: Prior, questions: Sequence[Question]) -> BlindScore:
    """The prior on at least one test question."""
    credit = sum((prior.credit(question) for question in questions), Fraction())
    return BlindScore(credit, len(questions), chance(questions))


def blind_credits(prior: Prior, questions: Iterable[Question]) -> dict[str, float]:
    """Question id -> expected right answers of the prior, 0 to 1, for paired differences."""
    return {question.question_id: float(prior.credit(question)) for question in questions}


def main() -> None:
    """Fit on one split file, test on another, and print the blind baseline."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.scoring.prior",
        description=(
            "The accuracy of a rule that counts option texts in TRAIN and never sees an image, on"
            " TEST."
        ),
    )
    parser.add_argument(
        "--train",
        type=Path,
        required=True,
        help="split file to count in, published form, plain or .gz",
    )
    parser.add_argument(
        "--test", type=Path, required=True, help="split file to test on, the same form"
    )
    arguments = parser.parse_args()
    train, test = read_questions(arguments.train), read_questions(arguments.test)
    prior = fit_prior(train)
    print(
        f"train       {len(train)} questions, {len(prior.offered)} option texts, {len(prior.gold)}"
        f" of them ever gold: {arguments.train}"
    )
    print(f"test        {len(test)} questions: {arguments.test}")
    print(f"accuracy    {_shown(blind_score(prior, test))}")
    print(
        f"as written  {_shown(blind_score(fit_prior(train, exact=True), test))}; spelling and"
        " capitals count"
    )
    print(f"chance      {float(chance(test)):.2%}")


def _shown(score: BlindScore) -> str:
    low, high = score.interval
    return (
        f"{score.accuracy:.2%} ({float(score.correct):.6g} of n = {score.n}), 95% Wilson interval"
        f" {low:.2%} to {high:.2%}"
    )


def _key(text: str, exact: bool) -> str:
    return text if exact else normalise(text)


if __name__ == "__main__":
    run_stage(main)
