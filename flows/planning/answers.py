"""Answers that the evaluations of a plan take, by variant of their questions.

Counted from the split files if these are up to date; else, of a profile that gives the size of its
corpus, expected per test question.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from flows.planning.model import VariantAnswers
from stages.core import layout
from stages.core.errors import InputError
from stages.core.params import Params
from stages.core.yaml_files import read_text
from stages.generation.items import read_items
from stages.profiles.schema import FOLDER, load_profile
from stages.profiles.splice import reset
from stages.profiles.variants import (
    Answers,
    added,
    count_answers,
    describe_answers,
    expected_answers,
)
from stages.taxonomy import fold_number

_STAGE: Final = "evaluate@"


def evaluations_of(names: Collection[str]) -> list[str]:
    """The policies that evaluations among these stages test."""
    return sorted(name.removeprefix(_STAGE) for name in names if name.startswith(_STAGE))


def answers_of(
    root: Path, params: Params, names: Collection[str], left_out: Collection[str]
) -> dict[str, dict[str, Answers]] | None:
    """Policy -> variant -> answers, of evaluations among the stages `names`.

    `left_out`: checkpoints that are not evaluated. None if there are no test questions yet, as
    stage splits is to run or its files are not there.
    """
    policies = [name for name in evaluations_of(names) if name not in left_out]
    if "splits" in names:
        return None
    counts: dict[tuple[str, int | None], dict[str, Answers]] = {}
    for name in policies:
        key = params.require_evaluation(name).axis, fold_number(name)
        if key in counts:
            continue
        try:
            items = read_items(key[0], params.splits.kind, key[1], root)
        except InputError:  # not pulled, or damaged: the stages themselves say so
            return None
        if not items:
            return None
        counts[key] = count_answers(items, params)
    return {name: counts[params.evaluations[name].axis, fold_number(name)] for name in policies}


def as_json(answers: dict[str, dict[str, Answers]] | None) -> VariantAnswers | None:
    """The counts as plain values."""
    if answers is None:
        return None
    return {
        name: {
            variant: {"answers": round(count.answers), "images": round(count.images)}
            for variant, count in counts.items()
        }
        for name, counts in answers.items()
    }


def describe(
    root: Path, params: Params, names: Sequence[str], answers: dict[str, dict[str, Answers]] | None
) -> list[str]:
    """A note on the answers of the evaluations in a plan; none if it has none."""
    if not evaluations_of(names) or answers == {}:
        return []
    if answers is not None:
        together = added(answers.values())
        total = sum(count.answers for count in together.values())
        return [
            f"{len(answers)} evaluations take {total:,.0f} answers, those in the answer cache"
            f" included: {describe_answers(together)}"
        ]
    _, profile_name = reset(read_text(root / layout.PARAMS), layout.PARAMS)
    unknown = "how many answers the evaluations take is unknown until stage splits has run"
    if profile_name is None:
        return [unknown]
    try:
        _, profile = load_profile(profile_name, root / FOLDER)
    except InputError:
        return [unknown]
    if profile.scale is None:
        return [unknown]
    expected = expected_answers(params, profile.scale)
    return [
        f"{unknown}; by the size in profile {profile_name}, per test question and policy:"
        f" {describe_answers(expected, digits=2)}"
    ]
