"""Blind prior: accuracy reachable from option texts alone, without image or question.

    python -m stages.scoring.prior --train TRAIN.json --test TEST.json

The rule counts, in a train split, how often each option text is offered and how often it is gold,
and picks the option with the highest smoothed rate, (gold + 1/4) / (offered + 1): an unseen text
has the rate of one option among four. Distractors of OmniMedVQA come from a vocabulary that is
seldom gold, so this baseline is high. An accuracy that is not above it is no evidence that the
image was used.

Texts are counted normalised (`normalise`), or with `exact` as they are written. The latter is what
a model reads, and reveals more: in the published ultrasound questions, gold is always "kidney" and
the distractor always "Kidney".

Tied options share the credit: k tied options, gold among them, count as 1/k of a correct answer,
the expectation of a fair draw. So the order of the options does not matter, nothing is drawn at
random, and a question with only unseen options contributes exactly chance.
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
"""Pseudo-counts: one more offer, gold a quarter of the time.

Both are exact in binary, so that equal rates are equal floats.
"""

_SEPARATORS = re.compile(r"[\s_-]+")


@dataclass(frozen=True)
class Prior:
    """Counts of option texts (normalised unless `exact`): times gold, times offered."""

    gold: Counter[str]
    offered: Counter[str]
    exact: bool = False

    def rate(self, text: str) -> float:
        """Smoothed frequency with which `text` was gold when offered, in (0, 1)."""
        key = _key(text, self.exact)
        return (self.gold[key] + PSEUDO_GOLD) / (self.offered[key] + PSEUDO_OFFERED)

    def favourites(self, options: Sequence[str]) -> list[int]:
        """Indices of the options with the highest rate; several if they tie."""
        rates = [self.rate(text) for text in options]
        best = max(rates)
        return [index for index, rate in enumerate(rates) if rate == best]

    def credit(self, question: Question) -> Fraction:
        """Probability that the rule is correct with ties drawn fairly: 0, 1, or 1/k."""
        favourites = self.favourites(question.options)
        return Fraction(question.gold in favourites, len(favourites))


@dataclass(frozen=True)
class BlindScore:
    """Expected correct answers of a rule on `n` questions, and expected accuracy of guessing."""

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
    """Fold case, separators (whitespace, hyphens, underscores) and full stops at the ends.

    "x_ray." and "X-ray" are the same text.
    """
    return _SEPARATORS.sub(" ", text).strip(" .").casefold()


def fit_prior(questions: Iterable[Question], *, exact: bool = False) -> Prior:
    """Count the options of train questions, as they are written if `exact`.

    Without questions all options tie, so the prior is at chance.
    """
    gold: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    for question in questions:
        texts = [_key(text, exact) for text in question.options]
        offered.update(texts)
        gold[texts[question.gold]] += 1
    return Prior(gold, offered, exact)


def pool(priors: Sequence[Prior]) -> Prior:
    """The prior of several train splits together, as if fitted on all their questions.

    Pool only within one axis: the axes are split independently, so the train splits of one contain
    test questions of the other. Raises ValueError without priors, or if only some are `exact`.
    """
    if len({prior.exact for prior in priors}) != 1:
        raise ValueError("pool at least one prior; all or none of them must be exact")
    gold: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    for prior in priors:
        gold.update(prior.gold)
        offered.update(prior.offered)
    return Prior(gold, offered, priors[0].exact)


def blind_score(prior: Prior, questions: Sequence[Question]) -> BlindScore:
    """Score the prior on test questions; at least one is required."""
    credit = sum((prior.credit(question) for question in questions), Fraction())
    return BlindScore(credit, len(questions), chance(questions))


def blind_credits(prior: Prior, questions: Iterable[Question]) -> dict[str, float]:
    """Question id -> expected correct answers of the prior, 0 to 1, for paired differences."""
    return {question.question_id: float(prior.credit(question)) for question in questions}


def main() -> None:
    """Fit on one split file, test on another, and print the blind baseline."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.scoring.prior",
        description=(
            "Print the accuracy on TEST of a rule that counts option texts in TRAIN and never sees"
            " an image."
        ),
    )
    parser.add_argument(
        "--train",
        type=Path,
        required=True,
        help="split file to count in, in the published form, plain or .gz",
    )
    parser.add_argument(
        "--test", type=Path, required=True, help="split file to test on, in the same form"
    )
    arguments = parser.parse_args()
    train = read_questions(arguments.train)
    test = read_questions(arguments.test)
    prior = fit_prior(train)
    print(
        f"train       {len(train)} questions, {len(prior.offered)} option texts, {len(prior.gold)}"
        f" of them ever gold: {arguments.train}"
    )
    print(f"test        {len(test)} questions: {arguments.test}")
    exact = fit_prior(train, exact=True)
    print(f"accuracy    {_format(blind_score(prior, test))}")
    print(f"as written  {_format(blind_score(exact, test))}; spelling and capitals count")
    print(f"chance      {float(chance(test)):.2%}")


def _format(score: BlindScore) -> str:
    low, high = score.interval
    return (
        f"{score.accuracy:.2%} ({float(score.correct):.6g} of n = {score.n}), 95% Wilson interval"
        f" {low:.2%} to {high:.2%}"
    )


def _key(text: str, exact: bool) -> str:
    return text if exact else normalise(text)


if __name__ == "__main__":
    run_stage(main)
