"""Measurements of a corpus as a whole, after all modalities; judged in data_tests.py.

Every function takes records, or the splits drawn from them, and says how much of what it looked at
is not as it should be. Records are those of stage resize, with the facts of their images; what a
single record must hold is records.py's matter, and counted here again, for files can be changed
between two stages.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from stages.corpus.dataset.problems import LETTERS, letter_options, parse_solution
from stages.corpus.quarantine.reasons import Reason
from stages.taxonomy import MODALITIES

if TYPE_CHECKING:
    from stages.corpus.records.records import Reading, Record

BLANK: Final = 1.0
"""Grey levels: an image whose levels vary less has nothing in it."""
DARK, BRIGHT = 5.0, 250.0
"""Mean grey levels below and above which hardly anything can be seen."""
LONGEST: Final = 4.0
"""A longer side of this many shorter ones counts as an extreme aspect ratio."""

_EXAMPLES: Final = 5
_DIGITS: Final = 4

Item = Mapping[str, Any]
Draw = Mapping[str, Mapping[str, tuple[Sequence[Item], Sequence[Item]]]]
"""Axis -> slug -> (train, test)."""


@dataclass(frozen=True)
class Measured:
    """A measurement: `value` (compared with the limit), `checked`, `found` violations."""

    value: float
    checked: int
    found: int
    examples: tuple[str, ...] = ()
    where: str = ""
    """Where the value was found, for tests that take the worst of several places."""


class ImageStatistics(NamedTuple):
    """One image as stage resize saw it.

    `light` is mean and standard deviation of its grey levels.
    """

    image: str
    modality: str
    width: int
    height: int
    pixel_hash: str
    light: tuple[float, float]


# --- single records
# --------------------------------------------------------------------------------------------------


def refused_for(reading: Reading, reasons: Iterable[Reason]) -> Measured:
    """Records that cannot be used for one of these reasons."""
    wanted = frozenset(reasons)
    return _offending(
        [f"{row.where}: {row.why}: {row.what}" for row in reading.rows if row.reason in wanted],
        reading.read,
    )


def lacking_facts(records: Sequence[Record]) -> Measured:
    """Records whose image metadata (from stage resize) is missing or malformed."""
    violations = []
    for record in records:
        wrong = [name for name, is_good in _FACTS.items() if not is_good(record.fields.get(name))]
        if wrong:
            what = (
                f"{wrong[0]} is missing"
                if wrong[0] not in record.fields
                else f"{wrong[0]} is {record.fields[wrong[0]]!r}"
            )
            violations.append(f"{record.place}: {what}")
    return _offending(violations, len(records))


def strays(records: Sequence[Record], file_of: Mapping[str, str]) -> Measured:
    """Records filed under another modality than their own; `file_of`: modality -> file."""
    violations = [
        f"{record.place}: {record.modality}"
        for record in records
        if record.place.file != file_of[record.modality]
    ]
    return _offending(violations, len(records))


# --- questions
# --------------------------------------------------------------------------------------------------


def repeated_questions(records: Sequence[Record]) -> Measured:
    """Share of questions that repeat another: same words, options in any order, same image."""
    first: dict[tuple[Any, ...], Record] = {}
    violations = []
    for record in records:
        known = first.setdefault(
            (record.question, tuple(sorted(record.options)), record.fields["pixel_hash"]), record
        )
        if known is not record:
            violations.append(f"{record.question_id} repeats {known.question_id}")
    return _share(violations, len(records))


def contradictions(records: Sequence[Record]) -> Measured:
    """Share of contradictory questions.

    Same words and pixels as another question, whose answer is an option here but not the correct
    one.

    Other answers alone are no contradiction: "CT" and "Computed tomography" may both be right where
    only one of them is offered.
    """
    alike: dict[tuple[str, str], dict[tuple[str, frozenset[str]], list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        alike[record.question, record.fields["pixel_hash"]][
            _answer(record), frozenset(record.options)
        ].append(record)
    at_odds: set[str] = set()
    texts = []
    for questions in alike.values():
        for one, other in combinations(questions, 2):
            if one[0] != other[0] and (one[0] in other[1] or other[0] in one[1]):
                first, second = questions[one], questions[other]
                at_odds |= {record.question_id for record in (*first, *second)}
                texts.append(
                    f"{first[0].question_id}: {one[0]!r}, {second[0].question_id}: {other[0]!r}"
                )
    return _share(sorted(texts), len(records), len(at_odds))


def letter_bias(records: Sequence[Record]) -> Measured:
    """Excess of the most over-represented gold letter over chance, as a share of questions."""
    chance: dict[str, float] = defaultdict(float)
    right = Counter(record.gold for record in records)
    for record in records:
        for letter in LETTERS[: len(record.options)]:
            chance[letter] += 1 / len(record.options)
    excess = {
        letter: (right[letter] - chance[letter]) / max(len(records), 1) for letter in sorted(chance)
    }
    worst = max(excess, key=lambda letter: (excess[letter], letter), default="")
    shares = tuple(
        f"{letter}: right in {right[letter]}, by chance {chance[letter]:.0f}"
        for letter in sorted(chance)
    )
    return Measured(
        round(excess.get(worst, 0.0), _DIGITS), len(records), right[worst], shares, worst
    )


def fewest(counts: Mapping[str, int]) -> Measured:
    """The smallest of several counts."""
    name = min(counts, key=lambda each: (counts[each], each))
    return Measured(
        counts[name],
        len(counts),
        counts[name],
        tuple(f"{each}: {counts[each]}" for each in counts),
        name,
    )


# --- splits
# --------------------------------------------------------------------------------------------------


def majority_letter(draw: Draw) -> Measured:
    """Largest share that one letter has of the right answers, of all train and test splits."""
    return _commonest(draw, lambda item: parse_solution(item["solution"]))


def majority_answer(draw: Draw) -> Measured:
    """Largest share that one text has of the right answers, of all train and test splits."""
    return _commonest(draw, _gold_text)


def single_answer_tests(draw: Draw) -> Measured:
    """Test splits with a single gold letter or text, which cannot separate policies."""
    violations, checked = [], 0
    for axis, slugs in draw.items():
        for slug, (_, test) in slugs.items():
            checked += 1
            for what, of in (
                ("letter", lambda item: parse_solution(item["solution"])),
                ("answer", _gold_text),
            ):
                values = {of(item) for item in test}
                if len(test) > 1 and len(values) == 1:
                    violations.append(f"{axis}/{slug}: the {what} is always {values.pop()!r}")
    return _offending(violations, checked)


# --- images
# --------------------------------------------------------------------------------------------------


def images_of(records: Sequence[Record]) -> list[ImageStatistics]:
    """The images of the records, each once, in the order of their paths."""
    images = {}
    for record in records:
        facts = record.fields
        (width, height), (mean, std) = facts["source_size"], facts["brightness"]
        images[facts["image"]] = ImageStatistics(
            facts["image"], record.modality, width, height, facts["pixel_hash"], (mean, std)
        )
    return [images[image] for image in sorted(images)]


def blank(images: Sequence[ImageStatistics]) -> Measured:
    """Share of the images that show one grey level all over."""
    return _share(
        [
            f"{each.image}: all about {each.light[0]:.0f}"
            for each in images
            if each.light[1] < BLANK
        ],
        len(images),
    )


def dark_or_bright(images: Sequence[ImageStatistics]) -> Measured:
    """Share of the images that are all but black, or all but white."""
    violations = [
        f"{each.image}: {each.light[0]:.1f} of 255"
        for each in images
        if not DARK <= each.light[0] <= BRIGHT
    ]
    return _share(violations, len(images))


def upscaled(images: Sequence[ImageStatistics], size: int) -> Measured:
    """Share of images with a side shorter than `size`, the side of the resized square."""
    violations = [
        f"{each.image}: {each.width} x {each.height}"
        for each in images
        if min(each.width, each.height) < size
    ]
    return _share(violations, len(images))


def extreme_aspect(images: Sequence[ImageStatistics]) -> Measured:
    """Share of the images that are far longer than wide, or wider than long."""
    violations = [
        f"{each.image}: {each.width} x {each.height}"
        for each in images
        if max(each.width, each.height) > LONGEST * min(each.width, each.height)
    ]
    return _share(violations, len(images))


def duplicates(images: Sequence[ImageStatistics]) -> Measured:
    """Share of the images whose pixels another one has under another name."""
    first: dict[str, str] = {}
    violations = [
        f"{each.image} is {first[each.pixel_hash]}"
        for each in images
        if first.setdefault(each.pixel_hash, each.image) != each.image
    ]
    return _share(violations, len(images))


def statistics(
    records: Sequence[Record], images: Sequence[ImageStatistics], size: int
) -> dict[str, dict[str, Any]]:
    """Modality -> counts, and mean and standard deviation of image brightness and contrast."""
    questions = Counter(record.modality for record in records)
    by_modality: dict[str, dict[str, Any]] = {}
    for slug in MODALITIES:
        mine = [each for each in images if each.modality == slug]
        if not mine:
            continue
        sides = [min(each.width, each.height) for each in mine]
        by_modality[slug] = {
            "questions": questions[slug],
            "images": len(mine),
            "median_side": float(np.median(sides)),
        }
        for name, values in (
            ("brightness", [each.light[0] for each in mine]),
            ("contrast", [each.light[1] for each in mine]),
        ):
            by_modality[slug][name] = {
                "mean": round(fmean(values), 2),
                "std": round(float(np.std(values)), 2),
            }
        by_modality[slug]["upscaled"] = upscaled(mine, size).value
    return by_modality


# --- helpers
# --------------------------------------------------------------------------------------------------


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _is_size(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(side) is int and side > 0 for side in value)
    )


def _is_light(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(each) in (int, float) and 0 <= each <= 255 for each in value)
    )


_FACTS: Final[Mapping[str, Callable[[object], bool]]] = {
    "image": _is_text,
    "source_size": _is_size,
    "source_mode": _is_text,
    "pixel_hash": _is_hash,
    "perceptual_hash": _is_hash,
    "brightness": _is_light,
}


def _offending(violations: Sequence[str], checked: int) -> Measured:
    """A test whose value is the number of what it found."""
    return Measured(len(violations), checked, len(violations), tuple(violations[:_EXAMPLES]))


def _share(violations: Sequence[str], checked: int, count: int | None = None) -> Measured:
    """A test whose value is a share of what it looked at.

    `count` if it is not that of the texts.
    """
    number = len(violations) if count is None else count
    return Measured(
        round(number / checked, _DIGITS) if checked else 0.0,
        checked,
        number,
        tuple(violations[:_EXAMPLES]),
    )


def _commonest(draw: Draw, of: Callable[[Item], str]) -> Measured:
    worst = Measured(0.0, 0, 0)
    checked = 0
    for axis, slugs in draw.items():
        for slug, parts in slugs.items():
            for part, items in zip(("train", "test"), parts, strict=True):
                checked += 1
                ((value, count),) = Counter(map(of, items)).most_common(1) or [("", 0)]
                share = round(count / len(items), _DIGITS) if items else 0.0
                if share > worst.value:
                    worst = Measured(
                        share,
                        0,
                        count,
                        (f"{value!r} in {count} of {len(items)}",),
                        f"{axis}/{slug}/{part}",
                    )
    return Measured(worst.value, checked, worst.found, worst.examples, worst.where)


def _gold_text(item: Item) -> str:
    return letter_options(item["options"])[parse_solution(item["solution"])].casefold()


def _answer(record: Record) -> str:
    return record.options[LETTERS.index(record.gold)]
