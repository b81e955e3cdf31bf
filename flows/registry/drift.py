"""Corpus drift: histograms of two corpora, compared feature by feature.

The measure is the Jensen-Shannon distance to base 2 (scipy has it): 0 for equal shares, 1 for
shares without anything in common; it takes empty bins as they are, which the population stability
index (PSI) does not. For small shifts PSI is about 5.5 times its square, so that the usual words
for PSI carry over: below 0.1 (distance 0.13) little has changed, above 0.25 (distance 0.21) much
has.

Two samples of one population differ too. The distance that 1 of 1,000 such pairs goes beyond is
told beside it, from the chi-squared distribution that 8 ln 2 nm / (n + m) times the squared
distance has for large samples (Lin 1991, Menendez et al. 1997); a distance below it says nothing.
It takes what is counted for independent: questions about one image are not quite.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Final

from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2

from stages.corpus.records.records import Record
from stages.taxonomy import MODALITIES

ALL: Final = "all"
"""The scope of all modalities together."""

Summary = dict[str, dict[str, dict[str, int]]]
"""Scope (ALL or a modality) -> feature -> bin -> how many questions, or images."""

_CONFIDENCE: Final = 0.999
_FEWEST: Final = 20
"""Fewer members than this on one side show nothing: the distribution of the distance is that of
large samples.
"""
_DIGITS: Final = 4
_LEVELS: Final = tuple(range(16, 256, 16))
_CONTRASTS: Final = tuple(range(8, 128, 8))
_WORDS: Final = (5, 8, 12, 17, 25, 50)
_SIDES: Final = (64, 128, 256, 384, 512, 768, 1024, 2048)


@dataclass(frozen=True)
class Drift:
    """How far one feature has moved in one scope.

    `distance`: Jensen-Shannon, 0 to 1; `chance`: what samples of `before` and `after` members, all
    of one population, may well be apart; `grown`, `shrunk`: the bins whose share has risen and
    fallen most.
    """

    scope: str
    feature: str
    distance: float
    chance: float
    before: int
    after: int
    grown: str
    shrunk: str

    def is_beyond(self, limit: float) -> bool:
        """Is it further than `limit`, and than chance."""
        return self.distance > max(limit, self.chance)


def summarise(records: Iterable[Record]) -> Summary:
    """Histograms of a corpus after stage resize.

    Questions by content, each image once by appearance.

    A feature that some record has no fact for, as in a corpus resized by an older version, is left
    out of its scope.
    """
    listed = list(records)
    scopes = {ALL: listed} | {
        slug: [record for record in listed if record.modality == slug] for slug in MODALITIES
    }
    found: Summary = {}
    for scope, mine in scopes.items():
        images = list({str(record.fields["image"]): record for record in mine}.values())
        counted = {name: _count(mine, of) for name, of in _OF_QUESTIONS.items()} | {
            name: _count(images, of) for name, of in _OF_IMAGES.items()
        }
        found[scope] = {
            name: counts
            for name, counts in counted.items()
            if counts and (scope == ALL or name != "modality")
        }
    return found


def compare(old: Summary, new: Summary) -> list[Drift]:
    """How far each feature that both have has moved, in each scope; the furthest first."""
    found = []
    for scope in (ALL, *MODALITIES):
        before, after = old.get(scope, {}), new.get(scope, {})
        for feature in [feature for feature in before if feature in after]:
            found.append(_compare(scope, feature, before[feature], after[feature]))
    return sorted(found, key=lambda each: -each.distance)


def describe(drift: Drift) -> str:
    """One drift in a line."""
    return (
        f"{drift.scope}: {drift.feature} moved by {drift.distance:.2f} (more: {drift.grown}; less:"
        f" {drift.shrunk})"
    )


def _compare(scope: str, feature: str, old: Mapping[str, int], new: Mapping[str, int]) -> Drift:
    bins = sorted(old.keys() | new.keys())
    before, after = sum(old.values()), sum(new.values())
    shares = {name: (old.get(name, 0) / before, new.get(name, 0) / after) for name in bins}
    first, second = zip(*shares.values(), strict=True)
    distance = float(jensenshannon(first, second, base=2)) if first != second else 0.0
    scale = 8 * math.log(2) * before * after / (before + after)
    chance = (
        math.sqrt(float(chi2.ppf(_CONFIDENCE, len(bins) - 1)) / scale) if len(bins) > 1 else 0.0
    )
    if min(before, after) < _FEWEST:
        chance = 1.0
    ordered = sorted(bins, key=lambda name: (shares[name][1] - shares[name][0], name))
    shrunk, grown = (
        f"{name} {shares[name][0]:.1%} to {shares[name][1]:.1%}"
        for name in (ordered[0], ordered[-1])
    )
    return Drift(
        scope,
        feature,
        round(distance, _DIGITS),
        round(min(chance, 1.0), _DIGITS),
        before,
        after,
        grown,
        shrunk,
    )


def _count(records: Sequence[Record], of: Callable[[Record], str | None]) -> dict[str, int]:
    """How many records are in each bin, by its name; {} if any is in none."""
    counts = Counter(map(of, records))
    return {} if None in counts else {str(name): counts[name] for name in sorted(counts, key=str)}


def _bin(value: float, edges: Sequence[int]) -> str:
    """The name of the bin a value is in, such as "64-127"."""
    at = bisect_right(edges, value)
    if at == 0:
        return f"under {edges[0]}"
    if at == len(edges):
        return f"{edges[-1]} and over"
    return _NAMES[edges[at - 1], edges[at]]


_BINS: Final = chain.from_iterable(map(pairwise, (_LEVELS, _CONTRASTS, _WORDS, _SIDES)))
_NAMES: Final = {(low, high): f"{low}-{high - 1}" for low, high in _BINS}


def _fact(
    name: str, edges: Sequence[int], of: Callable[[Any], float]
) -> Callable[[Record], str | None]:
    """The bin of a number that is made of a fact of a record; None if it has not got it."""
    return lambda record: _bin(of(record.fields[name]), edges) if name in record.fields else None


_OF_QUESTIONS: Final[Mapping[str, Callable[[Record], str | None]]] = {
    "modality": lambda record: record.modality,
    "question type": lambda record: record.question_type,
    "source set": lambda record: record.dataset,
    "right letter": lambda record: record.gold,
    "number of options": lambda record: str(len(record.options)),
    "words of the question": lambda record: _bin(len(record.question.split()), _WORDS),
}
_OF_IMAGES: Final[Mapping[str, Callable[[Record], str | None]]] = {
    "brightness": _fact("brightness", _LEVELS, lambda fact: fact[0]),
    "contrast": _fact("brightness", _CONTRASTS, lambda fact: fact[1]),
    "shorter side": _fact("source_size", _SIDES, min),
}
