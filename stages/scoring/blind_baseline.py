"""Blind baseline of one split, stored as a file so that scoring does not need the split itself.

Option texts are counted in two ways. `as_written` is what a model reads, and reveals more where
gold and distractors are spelt differently; `normalised` ignores spelling. The blind baseline shown
beside an accuracy is `as_written`. Both are also pooled over all train splits of the axis, for a
model trained on more than one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError
from stages.scoring.balanced import balanced_subset
from stages.scoring.baselines import baselines
from stages.scoring.prior import Prior, blind_credits, blind_score
from stages.scoring.questions import Question
from stages.scoring.statistics import wilson_interval

RULES: Final = ("as_written", "normalised")
"""How option texts are counted; the first is the blind baseline shown beside accuracies."""


@dataclass(frozen=True)
class RuleResult:
    """The blind prior under one counting rule on one test split: accuracy (0 to 1), 95% Wilson."""

    accuracy: float
    low: float
    high: float
    pooled: float
    """Accuracy of the prior of all train splits of the axis together."""
    balanced: tuple[str, ...]
    """Question ids of the prior-balanced subset (`stages.scoring.balanced`)."""
    credit: dict[str, float]
    """Question id -> expected correct answers of the prior, 0 to 1."""


@dataclass(frozen=True)
class BlindBaseline:
    """Model-free numbers of one test split: chance, majority letter, blind prior by both rules."""

    axis: str
    split: str
    kind: str
    train: int
    n: int
    chance: float
    letter: str
    letter_accuracy: float
    rules: dict[str, RuleResult]


def find_blind_baseline(
    axis: str,
    split: str,
    kind: str,
    train: Sequence[Question],
    test: Sequence[Question],
    own: Mapping[str, Prior],
    pooled: Mapping[str, Prior],
) -> BlindBaseline:
    """Compute the blind baseline of one split.

    `own` and `pooled` hold one prior per rule of `RULES`: fitted on the split's train questions,
    and on those of all splits of the axis.
    """
    simple = baselines(train, test)
    rules = {}
    for name in RULES:
        own_score = blind_score(own[name], test)
        low, high = own_score.interval
        rules[name] = RuleResult(
            accuracy=own_score.accuracy,
            low=low,
            high=high,
            pooled=blind_score(pooled[name], test).accuracy,
            balanced=balanced_subset(own[name], test).question_ids,
            credit=blind_credits(own[name], test),
        )
    return BlindBaseline(
        axis=axis,
        split=split,
        kind=kind,
        train=len(train),
        n=len(test),
        chance=float(simple.chance),
        letter=simple.majority.letter,
        letter_accuracy=simple.majority.score.accuracy or 0.0,
        rules=rules,
    )


def pool_folds(folds: Sequence[BlindBaseline], split: str) -> BlindBaseline:
    """The blind baseline of a cross-validation: out of fold, every question once.

    `train` is the mean over folds, `letter` the most frequent one; accuracies are of all questions.
    """
    n = sum(each.n for each in folds)
    letters = Counter(each.letter for each in folds)

    def mean(values: Iterable[float]) -> float:
        pairs = zip(values, folds, strict=True)
        return sum(value * each.n for value, each in pairs) / max(n, 1)

    rules = {}
    for name in RULES:
        own = [each.rules[name] for each in folds]
        credit: dict[str, float] = {}
        for rule in own:
            credit |= rule.credit
        low, high = wilson_interval(sum(credit.values()), n)
        rules[name] = RuleResult(
            accuracy=sum(credit.values()) / max(n, 1),
            low=low,
            high=high,
            pooled=mean(rule.pooled for rule in own),
            balanced=tuple(sorted(chain.from_iterable(rule.balanced for rule in own))),
            credit=credit,
        )
    return replace(
        folds[0],
        split=split,
        train=round(sum(each.train for each in folds) / len(folds)),
        n=n,
        chance=mean(each.chance for each in folds),
        letter=max(sorted(letters), key=letters.__getitem__),
        letter_accuracy=mean(each.letter_accuracy for each in folds),
        rules=rules,
    )


def as_json(blind_baseline: BlindBaseline) -> dict[str, Any]:
    """The blind baseline as JSON values."""
    return asdict(blind_baseline)


def read_blind_baseline(path: Path) -> BlindBaseline:
    """Read a file of stage prior; InputError if it is missing or is not such a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rules = {}
        for name in RULES:
            values = content["rules"][name]
            rules[name] = RuleResult(**values | {"balanced": tuple(values["balanced"])})
        names = BlindBaseline.__dataclass_fields__.keys() - {"rules"}
        blind_baseline = BlindBaseline(**{name: content[name] for name in names}, rules=rules)
        for rule in rules.values():
            if len(rule.credit) != blind_baseline.n or not set(rule.balanced) <= rule.credit.keys():
                raise ValueError(f"its credits are not those of {blind_baseline.n} questions")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro prior`") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} holds no blind baseline ({error!r}): delete it and run `dvc repro --force"
            " prior`"
        ) from error
    return blind_baseline
