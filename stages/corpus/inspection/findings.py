"""Findings of the corpus check: kinds of problems and oddities, with count, examples and remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

from stages.corpus.quarantine.advice import Advice, advise
from stages.corpus.quarantine.ledger import Row
from stages.corpus.splitting.data_tests import TESTS, Result

Level = Literal["refused", "stops", "note"]
"""Costs records; stops stage splits; neither."""

_LEVELS: Final = get_args(Level)


class Example(NamedTuple):
    """Location, value and explanation of one finding."""

    where: str
    what: str
    why: str


@dataclass
class CorpusFinding:
    """One kind of problem or oddity: count, examples and remedy.

    `level`: "refused" if it costs records.
    """

    kind: str
    remedy: str
    level: Level
    count: int = 0
    examples: list[Example] = field(default_factory=list)


class Findings:
    """Findings by kind, with the first examples of each."""

    def __init__(self, max_examples: int) -> None:
        self._max_examples = max_examples
        self._by_kind: dict[str, CorpusFinding] = {}

    def refuse(self, row: Row) -> None:
        """Count a refused record under the kind of its reason."""
        self._add(advise(row.reason), "refused", Example(str(row.where), row.what, row.why))

    def note(self, advice: Advice, where: str, what: str, why: str) -> None:
        """Count an oddity that costs no record."""
        self._add(advice, "note", Example(where, what, why))

    def stop(self, advice: Advice, where: str, what: str, why: str) -> None:
        """Count something that stops stage splits."""
        self._add(advice, "stops", Example(where, what, why))

    def data_test(self, result: Result) -> None:
        """Add a failed data test, or one with violations within its limit."""
        test = TESTS[result.test]
        level: Level = "stops" if result.stops else "note"
        value = f"{result.value:g}, limit {result.limit:g}"
        advice = Advice(f"data test {result.test}", test.remedy)
        if result.where:
            # one finding, at the worst of several places: the examples are what was counted there
            self._add(advice, level, Example(result.where, "; ".join(result.examples), value))
            return
        for example in result.examples or (result.test,):
            self._add(advice, level, Example(result.test, example, value))
        self._by_kind[advice.kind].count = max(result.found, 1)

    def _add(self, advice: Advice, level: Level, example: Example) -> None:
        new = CorpusFinding(advice.kind, advice.remedy, level)
        finding = self._by_kind.setdefault(advice.kind, new)
        finding.count += 1
        if len(finding.examples) < self._max_examples:
            finding.examples.append(example)

    def ordered(self) -> list[CorpusFinding]:
        """Refusals first, then by count."""
        return sorted(
            self._by_kind.values(),
            key=lambda finding: (_LEVELS.index(finding.level), -finding.count, finding.kind),
        )
