"""Tables of the report: terminal, Markdown and HTML render the same `Sheet`.

Numbers are plain ASCII. What a medium adds (colour, minus sign, small print) follows from the
fields of a cell and the kind of its column. `sheets` writes the unrounded numbers as CSV.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pandas as pd

from stages.corpus.quarantine.ledger import Quarantine
from stages.corpus.splitting.data_tests import TESTS, Result
from stages.reporting.curves import ends
from stages.reporting.evidence import Refusals, SplitSize
from stages.reporting.labels import AXIS_LABELS, clip, label, p_value, percent, signed
from stages.scoring.published.entries import PublishedTable
from stages.scoring.tables import CrossTable

Kind = Literal["slug", "code", "text", "number"]
"""How a column is rendered; HTML replaces a slug by its label."""

REFUSALS: Final = 20
"""Maximum number of rows in the table of refusals."""
REWARDS: Final = ("reward", "reward_accuracy", "reward_format")
SPARKS: Final = {
    "kl": ("KL to the base", "{:.3f}"),
    "completion_length": ("Completion length, tokens", "{:.1f}"),
    "truncated": ("Truncated completions", "{:.0%}"),
    "frac_reward_zero_std": ("Groups without a signal", "{:.0%}"),
}
"""Column of a training log -> title of its sparklines, format of a value."""


@dataclass(frozen=True)
class Column:
    """A heading, and how the cells below it are rendered."""

    name: str
    kind: Kind = "number"


@dataclass(frozen=True)
class SheetCell:
    """A value or several `lines`; `low` and `high`: its 95% interval; `note`: small print."""

    value: str | int | None = None
    low: str = ""
    high: str = ""
    trend: Literal["", "up", "down"] = ""
    """On which side of zero the whole interval is."""
    note: str = ""
    lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The entry on one line; with small print only if there is no value."""
        if self.lines:
            return "; ".join(self.lines)
        if self.value is None:
            return self.note or "-"
        return f"{self.value} [{self.low} to {self.high}]" if self.high else str(self.value)


@dataclass(frozen=True)
class SheetRow:
    """The cells of one row, the first of which names it; `group` is the heading above it."""

    cells: tuple[SheetCell, ...]
    group: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table: every row has one cell per column."""

    columns: tuple[Column, ...]
    rows: tuple[SheetRow, ...]

    @property
    def groups(self) -> dict[str, list[SheetRow]]:
        """The rows by group, in order."""
        groups: dict[str, list[SheetRow]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups


MISSING: Final = SheetCell(note="missing")
"""A number whose inputs are missing, unlike one that does not exist (a dash)."""
ANSWER_FORMS: Final = ("letter", "letter and text", "text", "in markup")
"""Columns that count how answers were written; those in markup are counted in the others, too."""
CHECKPOINT: Final = Column("checkpoint", "slug")


def overview(checkpoints: Mapping[str, Any]) -> Sheet:
    """The few numbers per checkpoint that fit a terminal."""
    names = ("n", "accuracy", "base", "gain [95%]", "blind\nbaseline", "visual\ngain")
    rows = []
    for name, entry in checkpoints.items():
        own = entry["in_domain"]
        blind_baseline = own["blind_baseline"]
        visual = own["visual"]["shuffled"]
        rows.append(
            _checkpoint_row(
                name,
                entry,
                own["n"],
                percent(own["accuracy"]),
                percent(own["base"]),
                difference(own["gain"], own["low"], own["high"]),
                percent(blind_baseline and blind_baseline["accuracy"]),
                signed(visual and visual["gain"]),
            )
        )
    return Sheet((CHECKPOINT, *map(Column, names)), tuple(rows))


def in_domain(checkpoints: Mapping[str, Any]) -> Sheet:
    """Accuracy, blind baseline, base, gain and p value per checkpoint, in-domain."""
    names = ("n", "accuracy", "blind baseline", "base", "gain", "p (Holm)")
    rows = []
    for name, entry in checkpoints.items():
        own = entry["in_domain"]
        blind = MISSING
        if baseline := own["blind_baseline"]:
            blind = _accuracy(baseline["accuracy"], baseline["low"], baseline["high"])
        rows.append(
            _checkpoint_row(
                name,
                entry,
                own["n"],
                _accuracy(own["accuracy"], own["accuracy_low"], own["accuracy_high"]),
                blind,
                percent(own["base"]),
                difference(own["gain"], own["low"], own["high"]),
                p_value(own["p_holm"]),
            )
        )
    return Sheet((CHECKPOINT, *map(Column, names)), tuple(rows))


def visual_gains(checkpoints: Mapping[str, Any]) -> Sheet:
    """Contribution of the image per checkpoint: above the blind baseline, visual gain, balanced."""
    gains = ("visual gain", "over a black image", "base's visual gain")
    names = ("above the blind baseline", *gains, "balanced", "n", "base, balanced")
    rows = []
    for name, entry in checkpoints.items():
        own = entry["in_domain"]
        above = MISSING
        if baseline := own["blind_baseline"]:
            above = difference(baseline["above"], baseline["above_low"], baseline["above_high"])
        visual = (
            _gain(own["visual"]["shuffled"]),
            _gain(own["visual"]["blank"]),
            _gain(own["base_visual"]["shuffled"]),
        )
        rows.append(_checkpoint_row(name, entry, above, *visual, *_balanced(own["balanced"])))
    return Sheet((CHECKPOINT, *map(Column, names)), tuple(rows))


def blind_rules(checkpoints: Mapping[str, Any]) -> Sheet:
    """Accuracies of rules that see no image, and of the base under the published protocols."""
    protocols = ("fair", "zero-shot", "tag", "tag-or-raw")
    blind_baselines = {
        "blind baseline": "accuracy",
        "blind baseline, normalised": "normalised",
        "blind baseline, pooled": "pooled",
    }
    scored = (f"base, {each.replace('-or-', ' or ')}" for each in protocols)
    names = ("chance", "majority letter", *blind_baselines, *scored)
    rows = []
    for name, entry in checkpoints.items():
        own = entry["in_domain"]
        blind_baseline = own["blind_baseline"]
        majority = own["majority"]
        rows.append(
            _row(
                name,
                percent(own["chance"]),
                f"{percent(majority['accuracy'])} ({majority['letter']})" if majority else MISSING,
                *(
                    percent(blind_baseline[key]) if blind_baseline else MISSING
                    for key in blind_baselines.values()
                ),
                *(percent(own["base_scored"][protocol]) for protocol in protocols),
            )
        )
    return Sheet((CHECKPOINT, *map(Column, names)), tuple(rows))


def answer_form(base: Mapping[str, Any], checkpoints: Mapping[str, Any]) -> Sheet:
    """Correct and readable answers and how they were written, per axis, the base first."""
    rows = []
    for axis, tested in base.items():
        own = {name: entry for name, entry in checkpoints.items() if entry["axis"] == axis}
        for name, entry in {"base": tested, **own}.items():
            shares = (percent(entry[key]) for key in ("micro", "macro", "format_rate"))
            counts = (entry["answers"][form] for form in ANSWER_FORMS)
            tokens = f"{entry['completion_tokens']:.1f}"
            rows.append(_row(name, entry["n"], *shares, *counts, tokens, group=axis_group(axis)))
    names = (
        *("questions", "correct, %", "macro, %", "readable, %"),
        *ANSWER_FORMS,
        "mean tokens",
    )
    return Sheet((CHECKPOINT, *map(Column, names)), tuple(rows))


def datasets(checkpoints: Mapping[str, Any]) -> Sheet:
    """In-domain accuracies per checkpoint and source data set."""
    rows = []
    for name, entry in checkpoints.items():
        for dataset, scores in entry["in_domain"]["by_dataset"].items():
            shares = (percent(scores[key]) for key in ("accuracy", "base", "blind_baseline"))
            rows.append(_row(name, dataset, scores["n"], *shares, signed(scores["visual_gain"])))
    names = ("n", "accuracy", "base", "blind baseline", "visual gain")
    return Sheet((CHECKPOINT, Column("data set", "text"), *map(Column, names)), tuple(rows))


def reward_hacking_indicators(checkpoints: Mapping[str, Any]) -> Sheet:
    """Indicators of reward hacking per checkpoint, with their limits as small print."""
    names = [indicator["name"] for indicator in next(iter(checkpoints.values()))["hacking"]]
    rows = [_row(name, *map(_indicator, entry["hacking"])) for name, entry in checkpoints.items()]
    return Sheet((CHECKPOINT, *map(Column, names)), tuple(rows))


def cross(table: CrossTable) -> Sheet:
    """Checkpoints crossed with the cells of an axis."""
    text = percent if table.measure == "accuracy" else signed
    heads = (f"{label(cell)} (n = {n})" for cell, n in table.questions.items())
    rows = (_row(name, *map(text, row.values())) for name, row in table.values.items())
    return Sheet((Column("trained on", "slug"), *map(Column, heads), Column("macro")), tuple(rows))


def training(logs: Mapping[str, pd.DataFrame]) -> Sheet:
    """Rewards and diagnostics: means over the first and the last tenth of the steps."""
    formats = dict.fromkeys(REWARDS, "{:.2f}") | {name: form for name, (_, form) in SPARKS.items()}
    rows = []
    for name, log in logs.items():
        cells: list[str | SheetCell] = []
        for column, form in formats.items():
            if log[column].notna().any():
                cells.append(" to ".join(form.format(end) for end in ends(log[column])))
            else:
                cells.append(SheetCell(note="not logged"))
        rows.append(_row(name, *cells))
    return Sheet((CHECKPOINT, *(Column(name.replace("_", " ")) for name in formats)), tuple(rows))


def splits(axis: str, sizes: Iterable[SplitSize]) -> Sheet:
    """Sizes of the splits of one axis, and test questions whose image is in train."""
    rows = []
    for each in sizes:
        if each.axis == axis:
            shared = percent(each.shared / each.test if each.test else None)
            rows.append(_row(each.slug, each.train, each.test, each.shared, shared))
    names = ("train", "test", "seen", "seen, %")
    return Sheet((Column(AXIS_LABELS[axis], "slug"), *map(Column, names)), tuple(rows))


def quarantine(accounts: Iterable[Quarantine]) -> Sheet:
    """Records read, kept and refused per stage."""
    rows = (_row(each.stage, each.read, each.kept, len(each.rows)) for each in accounts)
    return Sheet((Column("stage", "code"), *map(Column, ("read", "kept", "refused"))), tuple(rows))


def refusals(counts: Sequence[Refusals]) -> Sheet:
    """The most frequent refusals by source set and reason, with examples."""
    columns = (
        Column("source set", "text"),
        Column("reason", "code"),
        Column("refused"),
        Column("of the set, %"),
        Column("examples: location, value, problem", "text"),
    )
    rows = []
    for each in counts[:REFUSALS]:
        examples = tuple(f"{row.where}: {row.what}: {row.why}" for row in each.examples)
        share = percent(each.share, 2)
        rows.append(_row(each.dataset, each.reason, each.count, share, SheetCell(lines=examples)))
    return Sheet(columns, tuple(rows))


def data_tests(results: Iterable[Result]) -> Sheet:
    """Outcomes of data tests, with examples; with the remedy if failed."""
    columns = (
        Column("test", "code"),
        Column("outcome", "text"),
        Column("value"),
        Column("limit"),
        Column("meaning of the value", "text"),
        Column("examples and remedy", "text"),
    )
    rows = []
    for each in results:
        failed = each.outcome == "failed"
        test = TESTS[each.test]
        lines = tuple(map(clip, each.examples))
        rows.append(
            _row(
                each.test,
                SheetCell(each.severity, trend="down") if failed else each.outcome,
                f"{each.value:g}",
                f"{each.limit:g}",
                f"{test.meaning}: {each.where}" if each.where else test.meaning,
                SheetCell("", lines=(*lines, test.remedy) if failed else lines),
            )
        )
    return Sheet(columns, tuple(rows))


def image_statistics(statistics: Mapping[str, Mapping[str, Any]]) -> Sheet:
    """Sizes, brightness and contrast of the images per modality."""
    rows = []
    for slug, each in statistics.items():
        sizes = (each["images"], f"{each['median_side']:g}", percent(each["upscaled"]))
        levels = (
            f"{level['mean']:.1f} +- {level['std']:.1f}"
            for level in (each["brightness"], each["contrast"])
        )
        rows.append(_row(label(slug), *sizes, *levels))
    names = ("images", "median side", "upscaled, %", "brightness", "contrast")
    return Sheet((Column("modality", "text"), *map(Column, names)), tuple(rows))


def published_cross(table: PublishedTable) -> Sheet:
    """Differences published by Med-R1: rows trained, columns tested."""
    heads = [label(cell) for cell in table.cells]
    rows = []
    for head, values in zip(heads, table.values, strict=True):
        rows.append(_row(head, *(f"{value:+.2f}" for value in values)))
    return Sheet((Column("trained on", "text"), *map(Column, heads)), tuple(rows))


def _row(*values: SheetCell | str | int, group: str = "") -> SheetRow:
    cells = (value if isinstance(value, SheetCell) else SheetCell(value) for value in values)
    return SheetRow(tuple(cells), group)


def _checkpoint_row(
    name: str, entry: Mapping[str, Any], *values: SheetCell | str | int
) -> SheetRow:
    return _row(name, *values, group=axis_group(entry["axis"]))


def axis_group(axis: str) -> str:
    """Heading of the rows of the checkpoints of one axis."""
    return f"By {AXIS_LABELS[axis]}"


def _accuracy(value: float, low: float, high: float) -> SheetCell:
    return SheetCell(percent(value), percent(low), percent(high))


def difference(value: float, low: float | None, high: float | None) -> SheetCell:
    """A difference of shares in points, with its interval; dashes if that is unknown."""
    trend: Literal["", "up", "down"] = ""
    if low is not None and low > 0:
        trend = "up"
    elif high is not None and high < 0:
        trend = "down"
    return SheetCell(signed(value), signed(low), signed(high), trend)


def _gain(gain: Mapping[str, Any] | None) -> SheetCell:
    return difference(gain["gain"], gain["low"], gain["high"]) if gain else MISSING


def _balanced(balanced: Mapping[str, Any] | None) -> tuple[SheetCell | str | int, ...]:
    """Accuracy, questions and the base's accuracy on the balanced subset, which may be empty."""
    if not balanced:
        return MISSING, MISSING, MISSING
    if not balanced["n"]:
        return "-", 0, "-"
    return (
        _accuracy(balanced["accuracy"], balanced["accuracy_low"], balanced["accuracy_high"]),
        balanced["n"],
        percent(balanced["base"]),
    )


def _indicator(indicator: Mapping[str, Any]) -> SheetCell:
    if indicator["measured"] is None:
        return SheetCell("-")
    limit = f"limit {indicator['limit']:g}"
    if indicator["triggered"]:
        return SheetCell(f"triggered: {indicator['measured']:.3f}", trend="down", note=limit)
    return SheetCell(f"{indicator['measured']:.3f}", note=limit)
