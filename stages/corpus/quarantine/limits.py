"""Refusal limits, per source set and overall: beyond them, nothing is trained on the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from stages.corpus.quarantine.ledger import Counts, Quarantine, Row
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError

_REASONS: Final = 3
"""The commonest reasons that are named."""
_SHOWN: Final = 5
"""Limits passed that are named."""


class RefusalLimits(Protocol):
    """The group `quarantine` of params.yaml."""

    @property
    def max_refused_share(self) -> float:
        """Of all that a stage reads, but for sets with a limit of their own."""

    @property
    def max_refused_share_of_set(self) -> float:
        """Of each source set."""

    @property
    def min_refused(self) -> int:
        """Fewer refused records than this are no reason to stop, whatever their share."""

    @property
    def sets(self) -> Mapping[str, float]:
        """Source set -> a limit of its own."""


def check_refused(account: Quarantine, limits: RefusalLimits, path: Path, of: str) -> None:
    """Raise RefusedDataError beyond `limits`; `path`: the quarantine table, `of`: what was read."""
    violations = list(_beyond(account, limits))
    if not violations:
        return
    rest = f"; and {len(violations) - _SHOWN} more source sets" if len(violations) > _SHOWN else ""
    raise RefusedDataError(
        f"{of}: too much was refused by {account.stage}: {'; '.join(violations[:_SHOWN])}{rest}."
        f" {path} holds every refused record and why (docs/ingest-quality.md): correct the corpus,"
        " or, if the rest is good, raise the limit in params.yaml and run `dvc repro` again",
        CorpusFault.TOO_MUCH_REFUSED,
    )


def _beyond(account: Quarantine, limits: RefusalLimits) -> Iterable[str]:
    """One message per exceeded limit: the overall one first, then sets by refused records."""
    others = {name: counts for name, counts in account.sets.items() if name not in limits.sets}
    together = Counts(
        sum(counts.read for counts in others.values()),
        sum(counts.kept for counts in others.values()),
    )
    if _too_much(together, limits.max_refused_share, limits):
        rows = [row for row in account.rows if row.set in others]
        whole = (
            "all sets"
            if len(others) == len(account.sets)
            else "all sets without a limit of their own"
        )
        yield (
            f"of {whole} {_said(together, rows)}, quarantine.max_refused_share allows"
            f" {limits.max_refused_share:.1%}"
        )
    for name, counts in sorted(account.sets.items(), key=lambda each: (-each[1].refused, each[0])):
        own = name in limits.sets
        limit = limits.sets[name] if own else limits.max_refused_share_of_set
        key = f"quarantine.sets.{name}" if own else "quarantine.max_refused_share_of_set"
        if _too_much(counts, limit, limits):
            yield (
                f"of {name!r} {_said(counts, [row for row in account.rows if row.set == name])},"
                f" {key} allows {limit:.1%}"
            )


def _too_much(counts: Counts, limit: float, limits: RefusalLimits) -> bool:
    return counts.refused >= limits.min_refused and counts.share > limit


def _said(counts: Counts, rows: Iterable[Row]) -> str:
    """How much, and for which reasons mostly, the first example of each."""
    listed = list(rows)
    commonest = sorted(
        Counter(row.reason for row in listed).items(), key=lambda each: (-each[1], each[0])
    )[:_REASONS]
    examples = {row.reason: row for row in reversed(listed)}
    reasons = ", ".join(
        f"{count} {reason} ({examples[reason].what!r} in {examples[reason].where})"
        for reason, count in commonest
    )
    return (
        f"{counts.refused} of {counts.read} records ({counts.share:.1%}) were refused, mostly:"
        f" {reasons}"
    )
