"""What `med-r1 use` prints: conversion, inspection, words, checkpoints and run time."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from stages.corpus.formats.convert import Conversion
from stages.corpus.inspection.command import plain, print_inspection
from stages.predictions.schema import CONTEXT_PARTS, IMAGE_PARTS, VARIANTS
from stages.profiles.proposals.propose import Proposal
from stages.profiles.schema import SAMPLE
from stages.profiles.variants import (
    Answers,
    AnswersByVariant,
    added,
    count_answers,
    describe_answers,
)
from stages.reporting.labels import VARIANT_LABELS
from stages.taxonomy import parse_fold

_EXAMPLES: Final = 3
_CONCLUSIVE: Final = 100
"""Test questions below which an accuracy says little."""
_TRAIN_SECONDS: Final = 50
"""Training a checkpoint of the sample on 2 cores, start of its processes included."""
_IMAGE_SHARE: Final = 0.45
"""Of a step's time, what a further image of a question adds: 0.63 s with one, 2.59 s with 8."""
_EVALUATE_SECONDS: Final = 14
"""Starting an evaluation."""
_ANSWERS_PER_SECOND: Final = 250
"""Of the embedded base on 2 cores, about one image each (docs/evaluate.md)."""


def print_proposal(corpus: Path, proposal: Proposal, scale: str) -> None:
    """Print what is in a corpus and what would be set."""
    inspection = proposal.inspection
    print_inspection(corpus, inspection, inspection.status())
    for word in proposal.words:
        print(plain(f"word {word}"))
    if _would_be_added_to_git(corpus):
        print(f"warning: {corpus} is in this repository and not ignored: `git add` would add it")
    checkpoints = proposal.groups.get("checkpoints", {})
    if not checkpoints:
        return
    print()
    for setting in proposal.settings:
        print(plain(f"setting {setting}"))
    answers = answers_per_question(proposal)
    print(f"answers per test question: {describe_answers(answers, digits=2)}")
    for name, why in _not_asked(proposal, answers).items():
        print(f"not asked: {VARIANT_LABELS[name]} ({why})")
    print(f"\ncheckpoints: {', '.join(checkpoints)}")
    for text in proposal.existing.kept:
        print(plain(f"kept from params.yaml: {text}"))
    for text in proposal.existing.dropped:
        print(plain(f"not kept, as the corpus has too little data for its split: {text}"))
    for split in proposal.left_out:
        print(f"left out for lack of data: {split}")
    tested = _print_checkpoints(proposal)
    if scale == SAMPLE:
        # of an answer, nearly all time goes into its images
        images = sum(each.images for each in answers.values())
        answering = tested * images / _ANSWERS_PER_SECOND
        shown = proposal.inspection.shown
        mean = sum(map(math.prod, shown.items())) / max(sum(shown.values()), 1)
        training = _TRAIN_SECONDS * (1 + _IMAGE_SHARE * (mean - 1))
        seconds = len(checkpoints) * (training + _EVALUATE_SECONDS) + answering
        print(
            f"run time: about {max(round(seconds / 60), 1)} minutes on 2 cores, by the times of the"
            " sample, without decoding the images. The embedded base was trained on drawings: it"
            " shows that the pipeline works on your data, and says nothing of what a real model"
            " would learn from it; --scale full takes one"
        )


def answers_per_question(proposal: Proposal) -> dict[str, Answers]:
    """Variant -> answers and images, over the test questions of both axes, for each of these."""
    tests = proposal.inspection.tests
    counts = added(count_answers(items, proposal.fitted) for items in tests.values())
    questions = max(sum(map(len, tests.values())), 1)
    return {
        name: Answers(count.answers / questions, count.images / questions)
        for name, count in counts.items()
    }


def _not_asked(proposal: Proposal, answers: AnswersByVariant) -> dict[str, str]:
    """Variants that no test question has, and why."""
    if not proposal.fitted.evaluate.ablations:
        return dict.fromkeys(VARIANTS, "evaluate.ablations is false")
    several = "no test question shows several images"
    context = "no test question has a context"
    reasons = {
        "shuffled": "no modality has two test images",
        **dict.fromkeys(IMAGE_PARTS, several),
        **dict.fromkeys(CONTEXT_PARTS, context),
    }
    if "no_context" in answers:
        reasons["other_context"] = "all contexts of a modality are the same"
    return {name: reasons[name] for name in VARIANTS if name not in answers}


def _print_checkpoints(proposal: Proposal) -> int:
    """Print what each checkpoint has to train and to test; the questions of all evaluations."""
    splits = proposal.inspection.splits
    tested = 0
    small = False
    for name, each in proposal.groups["checkpoints"].items():
        fold = parse_fold(each["split"]) if proposal.folds else None
        train, test = _sizes(proposal, each["axis"], fold[0] if fold else each["split"])
        tested += sum(count for _, count in splits[each["axis"]].values())
        if fold and fold[1] > 1:
            continue
        together = (train + test) if fold else test
        line = f"{name}: {train} questions to train, {test} to test"
        if fold:
            line += f", as in the other folds; {together} are tested in all"
        if together < _CONCLUSIVE:
            small = True
            margin = 196 * math.sqrt(0.25 / max(together, 1))
            line += f"; so few leave an accuracy uncertain by about {margin:.0f} points"
        print(line)
    if small and not proposal.folds:
        print("--folds 5 tests every question once, with five times the trainings")
    return tested


def _sizes(proposal: Proposal, axis: str, slug: str) -> tuple[int, int]:
    """Training and test questions of a split, or of the parts of a joint one."""
    slugs = proposal.inspection.splits[axis]
    joint = proposal.of_model.splits.joint.get(slug)
    parts: Iterable[str] = [slug]
    if joint is not None:
        parts = slugs if joint.of == "all" else joint.of
    train, test = zip(*(slugs[part] for part in parts), strict=True)
    return sum(train), sum(test)


def print_conversion(source: Path, conversion: Conversion) -> None:
    """Print what became of the entries of a source, and what wording alone would answer."""
    print(
        f"{source}: {conversion.format}; {conversion.entries} entries, {conversion.questions} of"
        f" them questions about {conversion.images} images, {len(conversion.refusals)} refused; the"
        f" patient is known for {conversion.patients_known} images"
    )
    for refusal in conversion.refusals[:_EXAMPLES]:
        print(plain(f"  refused: {refusal}"))
    if len(conversion.refusals) > _EXAMPLES:
        print(f"  and {len(conversion.refusals) - _EXAMPLES} more")
    blind = conversion.blind
    print(
        f"  without the image, a rule of the wording answers {blind.highest:.1%}; chance is"
        f" {blind.chance:.1%}"
    )


def _would_be_added_to_git(corpus: Path) -> bool:
    if not corpus.resolve().is_relative_to(Path.cwd().resolve()):
        return False
    command = ["git", "check-ignore", "--quiet", str(corpus)]
    # 1: not ignored; 128: no repository
    return subprocess.run(command, capture_output=True, check=False).returncode == 1
