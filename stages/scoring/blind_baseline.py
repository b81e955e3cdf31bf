"""Blind baseline of one split as a file, so that later numbers need no split to compare with it.

Two ways to count texts: `as_written` is what a model reads, and gives away more where gold and
distractors are spelt differently; `normalised` is what is left when spelling does not count. The
blind baseline beside an accuracy is the first. Both also pooled over all train splits of the axis,
for a model that was trained on more than one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError
from stages.scoring.balanced import balanced_subset
from stages.scoring.baselines import baselines
from stages.scoring.prior import Prior, blind_credits, blind_score
from stages.scoring.questions import Question

RULES: Final = ("as_written", "normalised")
"""How texts are counted, the blind baseline that is shown first."""


@dataclass(frozen=True)
class Rule:
    """The blind prior under one counting rule on one test split.

    Accuracy (0 to 1), 95% Wilson interval.
    """

    accuracy: float
    low: float
    high: float
    pooled: float
    """Accuracy of the prior of all train splits of the axis together."""
    balanced: tuple[str, ...]
    """Question ids of the largest part of the test split on which the prior is at chance
    (`stages.scoring.balanced`).
    """
    credit: dict[str, float]
    """Question id -> expected right answers of the prior, 0 to 1."""


@dataclass(frozen=True)
class BlindBaseline:
    """Model-free numbers of one test split.

    Chance, majority letter, blind prior under both rules.
    """

    axis: str
    split: str
    kind: str
    train: int
    n: int
    chance: float
    letter: str
    letter_accuracy: float
    rules: dict[str, Rule]


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

    `own` and `pooled` hold a prior for each of `RULES`, fitted on its train split and on all of the
    axis.
    """
    simple = baselines(train, test)
    rules = {}
    for name in RULES:
        scored = blind_score(own[name], test)
        rules[name] = Rule(
            accuracy=scored.accuracy,
            low=scored.interval[0],
            high=scored.interval[1],
            pooled=blind_score(pooled[name], test).accuracy,
            balanced=balanced_subset(own[name], test).question_ids,
            credit=blind_credits(own[name], test),
        )
    majority = simple.majority.score.accuracy or 0.0
    return BlindBaseline(
        axis,
        split,
        kind,
        len(train),
        len(test),
        float(simple.chance),
        simple.majority.letter,
        majority,
        rules,
    )


def as_json(blind_baseline: BlindBaseline) -> dict[str, Any]:
    """The blind baseline as it is written down."""
    return asdict(blind_baseline)


def read_blind_baseline(path: Path) -> BlindBaseline:
    """The blind baseline in one file of stage prior.

    InputError if it is missing, or not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rules = {
            name: Rule(
                **content["rules"][name] | {"balanced": tuple(content["rules"][name]["balanced"])}
            )
            for name in RULES
        }
        fields = {
            name: content[name] for name in BlindBaseline.__dataclass_fields__ if name != "rules"
        }
        blind_baseline = BlindBaseline(**fields, rules=rules)
        if any(
            len(rule.credit) != blind_baseline.n or not set(rule.balanced) <= rule.credit.keys()
            for rule in rules.values()
        ):
            raise ValueError(f"its credits are not those of {blind_baseline.n} questions")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro prior`") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} holds no blind baseline ({error!r}): delete it and run `dvc repro --force"
            " prior`"
        ) from error
    return blind_baseline
