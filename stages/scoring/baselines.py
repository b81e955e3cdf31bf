"""Baselines without training: chance, majority letter, and the base under published scoring.

The published evaluation (released code of arXiv 2503.13939, src/eval_vqa) compares strings, and
different ones for different models. `extract_answer` accepts what a reader would accept. The gap
between the two is form, not knowledge: a gain over a base scored by string equality contains both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final, Literal

from stages.scoring.questions import Question, chance
from stages.scoring.tables import Score, score

if TYPE_CHECKING:
    import pandas as pd

Protocol = Literal["zero-shot", "tag", "tag-or-raw"]

_TAG = re.compile(r"<answer>\s*(\w+)\s*</answer>")


def _raw(output: str) -> str | None:
    return output


def _tag(output: str) -> str | None:
    match = _TAG.search(output)
    return match.group(1) if match else None


def _tag_or_raw(output: str) -> str | None:
    return _tag(output) if "answer" in output else output


PROTOCOLS: Final[dict[Protocol, Callable[[str], str | None]]] = {
    "zero-shot": _raw,
    "tag": _tag,
    "tag-or-raw": _tag_or_raw,
}
"""Protocol -> function that extracts the string compared with the gold letter; None is wrong.

- zero-shot, also No-Think with Qwen2-VL: the whole output, whitespace included; "C." is wrong.
- tag, Think: the first answer tag that holds a single word.
- tag-or-raw, No-Think with Qwen2.5-VL: the tag if "answer" occurs, else the whole output.

The published zero-shot prompt requests a letter without tags. On outputs to a prompt that requests
tags, "zero-shot" counts a well-formed answer as wrong; it reproduces the published number only for
a base prompted in the published way.
"""


@dataclass(frozen=True)
class Majority:
    """The most frequent gold letter of train, and the accuracy on test of always answering it."""

    letter: str
    score: Score


@dataclass(frozen=True)
class Baselines:
    """Baselines of one test split: exact expected accuracy of guessing, and majority letter."""

    chance: Fraction
    majority: Majority


def baselines(train: Sequence[Question], test: Sequence[Question]) -> Baselines:
    """Chance and majority letter of one split; neither side may be empty."""
    return Baselines(
        chance(test),
        majority_letter(
            (question.letter for question in train), [question.letter for question in test]
        ),
    )


def majority_letter(train: Iterable[str], test: Sequence[str]) -> Majority:
    """The most frequent of the gold letters `train` (ties: alphabetical), scored on `test`."""
    counts = Counter(train)
    letter = min(counts, key=lambda each: (-counts[each], each))
    return Majority(letter, Score(sum(gold == letter for gold in test), len(test)))


def score_as_published(predictions: pd.DataFrame, protocol: Protocol) -> Score:
    """Score by a published protocol, from the columns `output` and `gold` of predictions."""
    extract = PROTOCOLS[protocol]
    pairs = zip(predictions["output"], predictions["gold"], strict=True)
    return Score(sum(extract(output) == gold for output, gold in pairs), len(predictions))


def score_every_way(predictions: pd.DataFrame) -> dict[str, Score]:
    """Scores of the same outputs: "fair" (`extract_answer`) and each published protocol."""
    return {"fair": score(predictions)} | {
        name: score_as_published(predictions, name) for name in PROTOCOLS
    }
