"""Refusal limits, per source set and overall: beyond them, nothing is trained on the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, Protocol

from stages.corpus.quarantine.ledger import Counts, Quarantine, Row
from stages.corpus.quarantine.reasons import CorpusFault, Reason, RefusedDataError

_MAX_REASONS: Final = 3
"""Reasons that a message names per violation, the most frequent ones."""
_MAX_VIOLATIONS: Final = 5
"""Violations that a message names."""

_Violation = tuple[str, list[Reason]]
"""What exceeds a limit, and the reasons of most of its refusals."""


class RefusalLimits(Protocol):
    """The group `quarantine` of params.yaml."""

    @property
    def max_refused_share(self) -> float:
        """Of all records that a stage reads, except sets with a limit of their own."""

    @property
    def max_refused_share_of_set(self) -> float:
        """Of each source set."""

    @property
    def min_refused(self) -> int:
        """Fewer refused records than this are accepted, whatever their share."""

    @property
    def sets(self) -> Mapping[str, float]:
        """Source set -> a limit of its own."""


def check_refused(
    quarantine: Quarantine,
    limits: RefusalLimits,
    path: Path,
    source: str,
    remedy_of: Callable[[Reason], str],
) -> None:
    """Raise RefusedDataError if more records were refused than `limits` allow.

    `path`: the file of the quarantine table; `source`: what the stage read; `remedy_of`: what to do
    about a reason, for those that most records were refused for.
    """
    excess = find_excess(quarantine, limits)
    if excess is None:
        return
    named, reasons = excess
    remedies = [f"{reason}: {remedy_of(reason)}" for reason in reasons]
    raise RefusedDataError(
        f"{source}: {quarantine.stage} refused too many records: {named}. {path} contains every"
        f" refused record and why. {' '.join(remedies)} Then run `dvc repro`. To train on the rest"
        " only, raise the limit in params.yaml (docs/ingest-quality.md)",
        CorpusFault.TOO_MUCH_REFUSED,
    )


def find_excess(quarantine: Quarantine, limits: RefusalLimits) -> tuple[str, list[Reason]] | None:
    """What exceeds which limits, in words, and the most frequent reasons; None if nothing does."""
    violations = list(_violations(quarantine, limits))
    if not violations:
        return None
    named = "; ".join(text for text, _ in violations[:_MAX_VIOLATIONS])
    if (count := len(violations) - _MAX_VIOLATIONS) > 0:
        named += f"; and {count} more source sets"
    reasons = dict.fromkeys(chain.from_iterable(reasons for _, reasons in violations))
    return named, list(reasons)[:_MAX_REASONS]


def _violations(quarantine: Quarantine, limits: RefusalLimits) -> Iterable[_Violation]:
    """Message and reasons per exceeded limit: the overall one first, then sets by refusals."""
    sets = quarantine.sets
    others = {name: counts for name, counts in sets.items() if name not in limits.sets}
    overall = Counts(
        sum(counts.read for counts in others.values()),
        sum(counts.kept for counts in others.values()),
    )
    if _exceeds(overall, limits.max_refused_share, limits):
        rows = [row for row in quarantine.rows if row.set in others]
        scope = "all sets" + (" without a limit of their own" if len(others) < len(sets) else "")
        limit = f"quarantine.max_refused_share allows {limits.max_refused_share:.1%}"
        yield _describe(overall, scope, limit, rows)
    for name, counts in sorted(sets.items(), key=lambda item: (-item[1].refused, item[0])):
        key = "max_refused_share_of_set"
        share = limits.max_refused_share_of_set
        if name in limits.sets:
            key = f"sets.{name}"
            share = limits.sets[name]
        if _exceeds(counts, share, limits):
            rows = [row for row in quarantine.rows if row.set == name]
            yield _describe(counts, repr(name), f"quarantine.{key} allows {share:.1%}", rows)


def _exceeds(counts: Counts, share: float, limits: RefusalLimits) -> bool:
    return counts.refused >= limits.min_refused and counts.share > share


def _describe(counts: Counts, scope: str, limit: str, rows: Sequence[Row]) -> _Violation:
    """How many records were refused, and the most frequent reasons with their first examples."""
    frequencies = Counter(row.reason for row in rows)
    most_frequent = sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))[:_MAX_REASONS]
    first = {row.reason: row for row in reversed(rows)}
    reasons = ", ".join(
        f"{count} {reason} ({first[reason].what!r} in {first[reason].where})"
        for reason, count in most_frequent
    )
    refused = f"{counts.refused} of {counts.read} records ({counts.share:.1%}) of {scope}"
    text = f"{refused}, where {limit}, mostly {reasons}"
    return text, [reason for reason, _ in most_frequent]
