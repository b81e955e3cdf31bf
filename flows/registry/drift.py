"""Corpus drift: histograms of two corpora, compared feature by feature.

The measure is the Jensen-Shannon distance with base 2 (scipy): 0 for equal distributions, 1 for
disjoint ones. Unlike the population stability index (PSI), it is defined with empty bins. For small
shifts PSI is about 5.5 times its square, so the usual thresholds for PSI carry over: below 0.1
(distance 0.13) little has changed, above 0.25 (distance 0.21) much has.

Two samples of one population differ too. Each distance is therefore reported with the one that only
1 in 1,000 such pairs exceeds, and a smaller distance is not significant. For samples of n and m,
8 ln 2 nm / (n + m) times the squared distance is asymptotically chi-squared (Lin 1991, Menendez et
al. 1997). This assumes independent counts, which questions about one image are not quite.
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

ALL: Final = "all"
"""The scope of all modalities together."""

Summary = dict[str, dict[str, dict[str, int]]]
"""Scope (ALL or a modality) -> feature -> bin -> number of questions, or of images."""

_CONFIDENCE: Final = 0.999
_FEWEST: Final = 20
"""Sample size below which no drift is reported: the chi-squared limit needs large samples."""
_DIGITS: Final = 4
_LEVELS: Final = tuple(range(16, 256, 16))
_CONTRASTS: Final = tuple(range(8, 128, 8))
_WORDS: Final = (5, 8, 12, 17, 25, 50)
_SIDES: Final = (64, 128, 256, 384, 512, 768, 1024, 2048)


@dataclass(frozen=True)
class Drift:
    """Drift of one feature in one scope.

    `distance`: Jensen-Shannon, 0 to 1; `chance`: the distance that samples of sizes `before` and
    `after` from one population may reach by chance; `grown`, `shrunk`: the bins whose share rose
    and fell most.
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
        """Does it exceed both `limit` and chance."""
        return self.distance > max(limit, self.chance)


def summarise(records: Iterable[Record]) -> Summary:
    """Histograms of a corpus after stage resize: of its questions, and of its distinct images.

    A feature missing from any record of a scope, as in a corpus resized by an older version, is
    left out of that scope.
    """
    everything = list(records)
    scopes = {ALL: everything}
    for record in everything:
        scopes.setdefault(record.modality, []).append(record)
    summary: Summary = {}
    for scope, questions in scopes.items():
        images = list({str(record.fields["image"]): record for record in questions}.values())
        histograms = {name: _count(questions, of) for name, of in _OF_QUESTIONS.items()}
        histograms |= {name: _count(images, of) for name, of in _OF_IMAGES.items()}
        if scope != ALL:
            del histograms["modality"]
        summary[scope] = {name: counts for name, counts in histograms.items() if counts}
    return summary


def compare(old: Summary, new: Summary) -> list[Drift]:
    """Drift of every feature and scope that both summaries have, largest distance first."""
    drifts = []
    for scope in old:
        before = old.get(scope, {})
        after = new.get(scope, {})
        for feature in [feature for feature in before if feature in after]:
            drifts.append(_compare(scope, feature, before[feature], after[feature]))
    return sorted(drifts, key=lambda drift: -drift.distance)


def describe(drift: Drift) -> str:
    """One drift in one line."""
    return (
        f"{drift.scope}: {drift.feature} moved by {drift.distance:.2f} (more: {drift.grown}; less:"
        f" {drift.shrunk})"
    )


def _compare(scope: str, feature: str, old: Mapping[str, int], new: Mapping[str, int]) -> Drift:
    bins = sorted(old.keys() | new.keys())
    before = sum(old.values())
    after = sum(new.values())
    shares = {name: (old.get(name, 0) / before, new.get(name, 0) / after) for name in bins}
    first, second = zip(*shares.values(), strict=True)
    distance = float(jensenshannon(first, second, base=2)) if first != second else 0.0
    chance = 0.0
    if len(bins) > 1:
        scale = 8 * math.log(2) * before * after / (before + after)
        chance = math.sqrt(float(chi2.ppf(_CONFIDENCE, len(bins) - 1)) / scale)
    if min(before, after) < _FEWEST:
        chance = 1.0

    def moved(name: str) -> str:
        return f"{name} {shares[name][0]:.1%} to {shares[name][1]:.1%}"

    ordered = sorted(bins, key=lambda name: (shares[name][1] - shares[name][0], name))
    return Drift(
        scope,
        feature,
        round(distance, _DIGITS),
        round(min(chance, 1.0), _DIGITS),
        before,
        after,
        grown=moved(ordered[-1]),
        shrunk=moved(ordered[0]),
    )


def _count(records: Sequence[Record], of: Callable[[Record], str | None]) -> dict[str, int]:
    """Bin -> number of records in it; {} if a record has no bin."""
    counts = Counter(map(of, records))
    return {} if None in counts else {str(name): counts[name] for name in sorted(counts, key=str)}


def _bin(value: float, edges: Sequence[int]) -> str:
    """The name of a value's bin, such as "64-127"."""
    at = bisect_right(edges, value)
    if at == 0:
        return f"under {edges[0]}"
    if at == len(edges):
        return f"{edges[-1]} and over"
    return _NAMES[edges[at - 1], edges[at]]


_BINS: Final = chain.from_iterable(map(pairwise, (_LEVELS, _CONTRASTS, _WORDS, _SIDES)))
_NAMES: Final = {(low, high): f"{low}-{high - 1}" for low, high in _BINS}


def _binned_field(
    name: str, edges: Sequence[int], of: Callable[[Any], float]
) -> Callable[[Record], str | None]:
    """Function from a record to the bin of a number derived from a field, None if missing."""
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
    # (mean, standard deviation) of the gray levels
    "brightness": _binned_field("brightness", _LEVELS, lambda levels: levels[0]),
    "contrast": _binned_field("brightness", _CONTRASTS, lambda levels: levels[1]),
    "shorter side": _binned_field("source_size", _SIDES, min),
}
