"""Balanced multiple-choice questions from labels, and what of them a blind rule answers.

Who never sees the image must not find the answer: neither by its letter nor by its text. Letters of
correct options are balanced per label. A vocabulary of at most four labels is offered in full. Of a
larger one, each question offers four, drawn such that every label of a set is correct equally often
whenever that set is offered. A label with more than a quarter of all images cannot be hidden like
that: it is offered every time, and its share remains the accuracy of a blind rule.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from stages.corpus.dataset.problems import LETTERS
from stages.corpus.formats.questions import ConversionOptions, LabelledImage, Question, Refusal
from stages.corpus.records.table import content_id

MAX_OPTIONS: Final = 4
_QUESTION: Final = "Which {label} does this image show?"


Items = Mapping[int, LabelledImage]
"""Position in the source -> labelled image."""


def build_questions(items: Items, options: ConversionOptions) -> dict[int, Question | Refusal]:
    """One question per labelled image of one vocabulary, a modality's labels in one column.

    With `options.equalize`, surplus images are refused. All draws depend on the seed and the names
    of the vocabulary. Positions are those of `items`.
    """
    first = next(iter(items.values()), None)
    if first is None:
        return {}
    rng = Random(f"{options.seed} {first.modality} {first.column}")  # noqa: S311 (no secret)
    surplus = _surplus(items, rng) if options.equalize else {}
    used = {position: item for position, item in items.items() if position not in surplus}
    return surplus | _questions(used, rng, options.question or _QUESTION)


def _surplus(items: Items, rng: Random) -> dict[int, Question | Refusal]:
    """Images of frequent labels beyond the largest number that hides how frequent they are."""
    positions = _positions_by_label(items)
    counts = [len(each) for each in positions.values()]
    size = min(MAX_OPTIONS, len(counts))

    def is_revealed(limit: int) -> bool:
        """Whether the most frequent label has more than its part of all images."""
        return limit * size > sum(min(count, limit) for count in counts)

    # true from some limit on: the sum grows ever more slowly
    limit = bisect_left(range(max(counts) + 1), True, key=is_revealed) - 1
    refusals: dict[int, Question | Refusal] = {}
    for label, found in positions.items():
        for position in rng.sample(found, len(found))[limit:]:
            why = f"surplus image of the label {label!r}: {limit} of {len(found)} are used"
            refusals[position] = Refusal(items[position].location, label, why, None)
    return refusals


def _positions_by_label(items: Items) -> dict[str, list[int]]:
    """Label -> positions, both sorted."""
    by_label = defaultdict(list)
    for position, item in sorted(items.items()):
        by_label[item.label].append(position)
    return dict(sorted(by_label.items()))


def _questions(items: Items, rng: Random, template: str) -> dict[int, Question | Refusal]:
    """Questions about images of one vocabulary."""
    positions = _positions_by_label(items)
    counts = {label: len(each) for label, each in positions.items()}
    size = min(MAX_OPTIONS, len(counts))
    shares = _offered_shares(counts, size)
    # one cycle of letters through all labels: balanced per label and in total
    letters = itertools.cycle(rng.sample(range(size), size))
    questions: dict[int, Question | Refusal] = {}
    for label, each in positions.items():
        for position in rng.sample(each, len(each)):
            texts = [text for text in _draw_options(rng, label, shares, size) if text != label]
            rng.shuffle(texts)
            texts.insert(next(letters), label)
            questions[position] = _question(items[position], tuple(texts), template)
    return questions


def _question(item: LabelledImage, options: tuple[str, ...], template: str) -> Question:
    return Question(
        location=item.location,
        dataset=item.dataset,
        # independent of the options, which change with the images of other labels
        question_id=content_id([item.dataset, item.modality, item.column, item.image_name]),
        question_type=item.question_type,
        question=template.replace("{label}", item.column),
        options=options,
        answer=item.label,
        modality=item.modality,
        image=item.image,
        image_name=item.image_name,
        patient=item.patient,
        context=item.context,
        label_column=item.column,
    )


def _offered_shares(counts: Mapping[str, int], size: int) -> dict[str, float]:
    """Label -> share of the questions that offer it: proportional to its count, at most 1."""
    capped: set[str] = set()
    while True:
        rest = sum(count for label, count in counts.items() if label not in capped)
        scale = (size - len(capped)) / rest if rest else 0.0
        frequent = {label for label, count in counts.items() if count * scale >= 1} - capped
        if not frequent:
            return {
                label: 1.0 if label in capped else count * scale for label, count in counts.items()
            }
        capped |= frequent


def _draw_options(rng: Random, label: str, shares: Mapping[str, float], size: int) -> list[str]:
    """Labels with this one, sorted, drawn with the shares as probabilities of inclusion.

    Systematic sampling: labels in random order lie on a line as intervals as long as their shares,
    which add up to `size`. A point in the interval of `label` and all points at whole distances
    from it hit `size` different labels. The probability of a set given its correct label is that of
    the set given that it holds the label: so all labels of a set are correct equally often.
    """
    while True:  # rounding can let two points hit one label, very rarely
        order = rng.sample(list(shares), len(shares))
        ends = list(itertools.accumulate(shares[each] for each in order))
        at = order.index(label)
        point = ends[at] - rng.random() * shares[label]
        hits = (bisect_right(ends, point % 1 + step) for step in range(size))
        drawn = {order[min(hit, len(order) - 1)] for hit in hits}
        if label in drawn and len(drawn) == size:
            return sorted(drawn)  # the order of a set differs between processes


@dataclass(frozen=True)
class BlindAccuracy:
    """Cross-validated accuracies of rules that never see the image, and chance."""

    by_text: float
    """Of the option whose text was correct most often relative to how often it was offered."""
    by_question: float
    """The same, per text of the question."""
    by_letter: float
    """Of the letter that was correct most often."""
    chance: float
    questions: int

    @property
    def highest(self) -> float:
        """Of the best of the rules."""
        return max(self.by_text, self.by_question, self.by_letter)


def blind_accuracy(
    records: Sequence[Mapping[str, str]], folds: int = 5, seed: int = 42
) -> BlindAccuracy:
    """Accuracy of rules that are learnt on the other folds and never see the image.

    `records` have OmniMedVQA's fields. Options with equal scores count as one drawn among them.
    """
    order = list(range(len(records)))
    Random(seed).shuffle(order)  # noqa: S311 (no secret)
    hits = dict.fromkeys(_KEYS, 0.0)
    for fold in range(folds):
        train = [records[at] for number, at in enumerate(order) if number % folds != fold]
        test = [records[at] for at in order[fold::folds]]
        for rule, key in _KEYS.items():
            hits[rule] += _hits(key, train, test)
    total = max(len(records), 1)
    chance = sum(1 / len(option_texts(record)) for record in records) / total
    accuracies = {rule: count / total for rule, count in hits.items()}
    return BlindAccuracy(
        by_text=accuracies["text"],
        by_question=accuracies["question"],
        by_letter=accuracies["letter"],
        chance=chance,
        questions=len(records),
    )


def option_texts(record: Mapping[str, str]) -> dict[str, str]:
    """Options of a record by their letters."""
    texts = {letter: record.get(f"option_{letter}") for letter in LETTERS}
    return {letter: text for letter, text in texts.items() if text is not None}


Key = Callable[[Mapping[str, str], str, str], str]
"""What a rule knows of an option, from the record, the letter and the text."""
_KEYS: Final[dict[str, Key]] = {
    "text": lambda record, letter, text: text,
    "question": lambda record, letter, text: f"{record['question']}\n{text}",
    "letter": lambda record, letter, text: letter,
}


def _hits(key: Key, train: Iterable[Mapping[str, str]], test: Iterable[Mapping[str, str]]) -> float:
    """Number of test questions that the rule answers, expected over draws among equal scores."""
    offered: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for record in train:
        for letter, text in option_texts(record).items():
            known = key(record, letter, text)
            offered[known] += 1
            correct[known] += text == record["gt_answer"]
    hits = 0.0
    for record in test:
        texts = option_texts(record)
        scores = {}
        for letter, text in texts.items():
            known = key(record, letter, text)
            # one more time offered, correct at chance: rare texts do not win by accident
            scores[text] = (correct[known] + 1 / len(texts)) / (offered[known] + 1)
        best = [text for text, score in scores.items() if score == max(scores.values())]
        hits += (record["gt_answer"] in best) / len(best)
    return hits
