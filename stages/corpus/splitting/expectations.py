"""Measurements of a whole corpus; data_tests.py compares them with limits.

Records are those of stage resize, with the metadata of their images. Single records are validated
by records.py; they are counted here again because files can be changed between two stages.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeGuard

import numpy as np

from stages.corpus.dataset.contrast import BLANK_CONTRAST
from stages.corpus.dataset.problems import LETTERS, letter_options, parse_solution
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.splitting.draws import Draw, Item, splits_of

if TYPE_CHECKING:
    from stages.corpus.records.records import Reading, Record

DARK: Final = 5.0
"""Mean grey level below which an image is all but black."""
BRIGHT: Final = 250.0
"""Mean grey level above which an image is all but white."""
LONGEST: Final = 4.0
"""Ratio of the longer to the shorter side above which an aspect ratio is extreme."""

_EXAMPLES: Final = 5
_DIGITS: Final = 4


@dataclass(frozen=True)
class Measurement:
    """A `value` to compare with a limit, and the number of things checked and of violations."""

    value: float
    checked: int
    violations: int
    examples: tuple[str, ...] = ()
    where: str = ""
    """Where the value was measured, if it is the worst of several places."""


class ImageStatistics(NamedTuple):
    """One image as stage resize saw it.

    `brightness` and `contrast`: mean and standard deviation of its grey levels, 0 to 255.
    """

    image: str
    modality: str
    width: int
    height: int
    pixel_hash: str
    brightness: float
    contrast: float


# --- single records -------------------------------------------------------------------------------


def refused_records(reading: Reading, reasons: Iterable[Reason]) -> Measurement:
    """Records that were refused for one of these reasons."""
    counted = frozenset(reasons)
    return _count(
        [f"{row.where}: {row.why}: {row.what}" for row in reading.rows if row.reason in counted],
        reading.read,
    )


def invalid_metadata(records: Sequence[Record]) -> Measurement:
    """Records whose image metadata (from stage resize) is missing or malformed."""
    violations = []
    for record in records:
        for name, is_valid in _METADATA.items():
            if is_valid(record.fields.get(name)):
                continue
            is_missing = name not in record.fields
            problem = "missing" if is_missing else repr(record.fields[name])
            violations.append(f"{record.location}: {name} is {problem}")
            break  # one violation per record
    return _count(violations, len(records))


def misfiled_records(records: Sequence[Record], file_of: Mapping[str, str]) -> Measurement:
    """Records in the file of another modality; `file_of`: modality -> file."""
    violations = [
        f"{record.location}: {record.modality}"
        for record in records
        if record.location.file != file_of[record.modality]
    ]
    return _count(violations, len(records))


# --- questions ------------------------------------------------------------------------------------


def repeated_questions(records: Sequence[Record]) -> Measurement:
    """Share of questions that repeat another: same words, context, options in any order, image."""
    first: dict[tuple[Any, ...], Record] = {}
    violations = []
    for record in records:
        options = tuple(sorted(record.options))
        key = record.question, record.context, options, record.fields["pixel_hash"]
        original = first.setdefault(key, record)
        if original is not record:
            violations.append(f"{record.question_id} repeats {original.question_id}")
    return _share(violations, len(records))


class _Variant(NamedTuple):
    """Answer and options of a question."""

    answer: str
    options: frozenset[str]

    def contradicts(self, other: _Variant) -> bool:
        if self.answer == other.answer:
            return False
        return self.answer in other.options or other.answer in self.options


def contradictions(records: Sequence[Record]) -> Measurement:
    """Share of questions whose answer another question offers as an option and rules out.

    Two such questions have the same words, context and pixels. Different answers alone are no
    contradiction: "CT" and "Computed tomography" may both be right where only one is offered.
    """
    # (question, context, pixels) -> variant -> ids of the questions
    variants_of: dict[tuple[str, str | None, str], dict[_Variant, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        variant = _Variant(record.options[LETTERS.index(record.gold)], frozenset(record.options))
        key = record.question, record.context, record.fields["pixel_hash"]
        variants_of[key][variant].append(record.question_id)
    contradictory: set[str] = set()
    examples = []
    for variants in variants_of.values():
        for (one, ids), (other, other_ids) in combinations(variants.items(), 2):
            if one.contradicts(other):
                contradictory.update(ids, other_ids)
                examples.append(f"{ids[0]}: {one.answer!r}, {other_ids[0]}: {other.answer!r}")
    return _share(sorted(examples), len(records), len(contradictory))


def letter_bias(records: Sequence[Record]) -> Measurement:
    """Excess of the most over-represented gold letter over chance, as a share of questions."""
    gold = Counter(record.gold for record in records)
    # letter -> expected number of right answers if the options were shuffled
    chance: dict[str, float] = defaultdict(float)
    for record in records:
        for letter in LETTERS[: len(record.options)]:
            chance[letter] += 1 / len(record.options)
    letters = sorted(chance)
    excess = {letter: (gold[letter] - chance[letter]) / len(records) for letter in letters}
    worst = max(letters, key=lambda letter: (excess[letter], letter), default="")
    return Measurement(
        value=round(excess.get(worst, 0.0), _DIGITS),
        checked=len(records),
        violations=gold[worst],
        examples=tuple(
            f"{letter}: right in {gold[letter]}, by chance {chance[letter]:.0f}"
            for letter in letters
        ),
        where=worst,
    )


def smallest_count(counts: Mapping[str, int]) -> Measurement:
    """The smallest of several counts."""
    name = min(counts, key=lambda each: (counts[each], each))
    return Measurement(
        value=counts[name],
        checked=len(counts),
        violations=counts[name],
        examples=tuple(f"{each}: {count}" for each, count in counts.items()),
        where=name,
    )


# --- splits ---------------------------------------------------------------------------------------


def majority_letter(draw: Draw) -> Measurement:
    """Largest share of one letter among the right answers, over all train and test splits."""
    return _largest_share(draw, _gold_letter)


def majority_answer(draw: Draw) -> Measurement:
    """Largest share of one text among the right answers, over all train and test splits."""
    return _largest_share(draw, _gold_text)


def single_answer_tests(draw: Draw) -> Measurement:
    """Test splits with a single gold letter or text, which cannot separate policies."""
    violations = []
    splits = list(splits_of(draw))
    for split in splits:
        for name, gold in (("letter", _gold_letter), ("answer", _gold_text)):
            values = {gold(item) for item in split.test}
            if len(split.test) > 1 and len(values) == 1:
                always = values.pop()
                violations.append(f"{split.axis}/{split.slug}: the {name} is always {always!r}")
    return _count(violations, len(splits))


def _largest_share(draw: Draw, gold: Callable[[Item], str]) -> Measurement:
    worst = Measurement(0.0, 0, 0)
    checked = 0
    for split in splits_of(draw):
        for part, items in (("train", split.train), ("test", split.test)):
            checked += 1
            if not items:
                continue
            ((value, count),) = Counter(map(gold, items)).most_common(1)
            share = round(count / len(items), _DIGITS)
            if share > worst.value:
                example = f"{value!r} in {count} of {len(items)}"
                where = f"{split.axis}/{split.slug}/{part}"
                worst = Measurement(share, 0, count, (example,), where)
    return replace(worst, checked=checked)


def _gold_letter(item: Item) -> str:
    return parse_solution(item["solution"])


def _gold_text(item: Item) -> str:
    return letter_options(item["options"])[_gold_letter(item)].casefold()


# --- images ---------------------------------------------------------------------------------------


def unique_images(records: Sequence[Record]) -> list[ImageStatistics]:
    """The images of the records, each once, ordered by path."""
    images = {}
    for record in records:
        fields = record.fields
        path = fields["image"]
        width, height = fields["source_size"]
        brightness, contrast = fields["brightness"]
        images[path] = ImageStatistics(
            path, record.modality, width, height, fields["pixel_hash"], brightness, contrast
        )
    return [images[path] for path in sorted(images)]


def blank_images(images: Sequence[ImageStatistics]) -> Measurement:
    """Share of images of a single grey level."""
    violations = [
        f"{each.image}: all about {each.brightness:.0f}"
        for each in images
        if each.contrast < BLANK_CONTRAST
    ]
    return _share(violations, len(images))


def dark_or_bright_images(images: Sequence[ImageStatistics]) -> Measurement:
    """Share of images that are all but black, or all but white."""
    violations = [
        f"{each.image}: {each.brightness:.1f} of 255"
        for each in images
        if not DARK <= each.brightness <= BRIGHT
    ]
    return _share(violations, len(images))


def upscaled_images(images: Sequence[ImageStatistics], size: int) -> Measurement:
    """Share of images with a side shorter than `size`, the side of the resized square."""
    violations = [
        f"{each.image}: {each.width} x {each.height}"
        for each in images
        if min(each.width, each.height) < size
    ]
    return _share(violations, len(images))


def extreme_aspect_images(images: Sequence[ImageStatistics]) -> Measurement:
    """Share of images whose longer side is more than LONGEST times the shorter one."""
    violations = [
        f"{each.image}: {each.width} x {each.height}"
        for each in images
        if max(each.width, each.height) > LONGEST * min(each.width, each.height)
    ]
    return _share(violations, len(images))


def duplicate_images(images: Sequence[ImageStatistics]) -> Measurement:
    """Share of images with the same pixels as another path's."""
    first: dict[str, str] = {}
    violations = []
    for each in images:
        original = first.setdefault(each.pixel_hash, each.image)
        if original != each.image:
            violations.append(f"{each.image} is {original}")
    return _share(violations, len(images))


def statistics(
    records: Sequence[Record], images: Sequence[ImageStatistics], size: int, slugs: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Modality -> counts, and mean and standard deviation of image brightness and contrast.

    In the order of `slugs`, without modalities that have no image.
    """
    questions = Counter(record.modality for record in records)
    by_modality: dict[str, list[ImageStatistics]] = {slug: [] for slug in slugs}
    for each in images:
        by_modality[each.modality].append(each)
    return {
        slug: {
            "questions": questions[slug],
            "images": len(group),
            "median_side": float(np.median([min(each.width, each.height) for each in group])),
            "brightness": _mean_and_std([each.brightness for each in group]),
            "contrast": _mean_and_std([each.contrast for each in group]),
            "upscaled": upscaled_images(group, size).value,
        }
        for slug, group in by_modality.items()
        if group
    }


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(fmean(values), 2), "std": round(float(np.std(values)), 2)}


# --- validity of image metadata -------------------------------------------------------------------


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _is_size(value: object) -> bool:
    return _is_pair(value) and all(type(side) is int and side > 0 for side in value)


def _is_brightness(value: object) -> bool:
    return _is_pair(value) and all(
        type(each) in (int, float) and 0 <= each <= 255 for each in value
    )


def _is_pair(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == 2


_METADATA: Final[Mapping[str, Callable[[object], bool]]] = {
    "image": _is_text,
    "source_size": _is_size,
    "source_mode": _is_text,
    "pixel_hash": _is_hash,
    "perceptual_hash": _is_hash,
    "brightness": _is_brightness,
}


# --- results --------------------------------------------------------------------------------------


def _count(violations: Sequence[str], checked: int) -> Measurement:
    """A measurement whose value is the number of violations."""
    number = len(violations)
    return Measurement(number, checked, number, tuple(violations[:_EXAMPLES]))


def _share(violations: Sequence[str], checked: int, number: int | None = None) -> Measurement:
    """A measurement whose value is the share of violations; `number`: if not one per text."""
    if number is None:
        number = len(violations)
    share = round(number / checked, _DIGITS) if checked else 0.0
    return Measurement(share, checked, number, tuple(violations[:_EXAMPLES]))
