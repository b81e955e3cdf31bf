"""Tables and sentences on questions about several images and with context: what each part adds.

They show the `contributions` in metrics.json, which only exist if there are such questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from stages.reporting.labels import VARIANT_LABELS, percent, signed
from stages.reporting.tables import (
    CHECKPOINT,
    Column,
    Sheet,
    SheetCell,
    SheetRow,
    axis_group,
    difference,
)
from stages.scoring.contributions import AS_ASKED

KIND_LABELS: Final = {"several_images": "several images", "context": "context"}
"""Kind of question, as `stages.scoring.contributions.KINDS` has it, for readers."""
_KIND: Final = Column("questions with", "text")
_ASKED: Final = Column("asked", "text")


def mean_gains(contributions: Mapping[str, Any]) -> Sheet:
    """Mean gains over checkpoints by kind of question and variant; no rows if one has them all."""
    rows = []
    for kind, groups in contributions["means"].items():
        parts, base_parts = groups.get("parts", {}), groups.get("base_parts", {})
        for asked in VARIANT_LABELS:
            gains = [each.get(asked) for each in (groups["to_base"], parts, base_parts)]
            found = [gain for gain in gains if gain]
            if found and found[0]["checkpoints"] > 1:
                counts = (SheetCell(found[0][each]) for each in ("n", "checkpoints"))
                rows.append(_row("", (KIND_LABELS[kind], asked), *map(_gain, gains), *counts))
    names = ("over the base", "as asked minus variant", "the base's", "n", "checkpoints")
    return Sheet((_KIND, _ASKED, *map(Column, names)), tuple(rows))


def part_gains(contributions: Mapping[str, Any], checkpoints: Mapping[str, Any]) -> Sheet:
    """What each part of a question adds: accuracy as asked minus that of a variant without it.

    A row per checkpoint in `checkpoints`, kind of question and variant, beside the base's gain on
    the same questions.
    """
    rows = []
    for name, kind, own in _kinds(contributions, checkpoints):
        for variant, part in own["parts"].items():
            shares = (percent(part["accuracy"]), percent(part["other"]))
            cells = (name, KIND_LABELS[kind], variant, part["n"], *shares)
            gains = (_gain(part), _gain(own["base_parts"].get(variant)))
            rows.append(_row(axis_group(checkpoints[name]["axis"]), cells, *gains))
    names = ("n", "as asked", "in the variant", "gain", "base's gain")
    return Sheet((CHECKPOINT, _KIND, _ASKED, *map(Column, names)), tuple(rows))


def gains_over_base(contributions: Mapping[str, Any], checkpoints: Mapping[str, Any]) -> Sheet:
    """Gain over the base as asked, and with something exchanged; rows as in `part_gains`."""
    rows = []
    for name, kind, own in _kinds(contributions, checkpoints):
        for asked, pair in own["to_base"].items():
            shares = (percent(pair["accuracy"]), percent(pair["other"]))
            cells = (name, KIND_LABELS[kind], asked, pair["n"], *shares)
            rows.append(_row(axis_group(checkpoints[name]["axis"]), cells, _gain(pair)))
    names = ("n", "accuracy", "base", "gain over the base")
    return Sheet((CHECKPOINT, _KIND, _ASKED, *map(Column, names)), tuple(rows))


def part_sentences(contributions: Mapping[str, Any]) -> list[str]:
    """A sentence per kind of question: the mean gain over the base, and what each part adds."""
    sentences = []
    for kind, groups in contributions["means"].items():
        to_base, parts = groups["to_base"], groups.get("parts", {})
        count = to_base[AS_ASKED]["checkpoints"]
        gains = [f"{_points(to_base[AS_ASKED])} points over the base"]
        gains += [
            f"{_points(mean)} with {VARIANT_LABELS[asked]}"
            for asked, mean in to_base.items()
            if asked != AS_ASKED
        ]
        added = "; ".join(
            f"{VARIANT_LABELS[variant]} {_points(mean)}" for variant, mean in parts.items()
        )
        added = f" Gain over variants: {added}." if added else " Variants: not asked."
        sentences.append(
            f"Questions with {KIND_LABELS[kind]} ({count} checkpoint{'s' * (count > 1)}):"
            f" {', '.join(gains)}.{added}"
        )
    return sentences


def sheet_of(contributions: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of all comparisons as in metrics.json, for CSV."""
    columns = ["n", "accuracy", "other", "gain", "low", "high"]
    rows = []
    for name, kinds in contributions["checkpoints"].items():
        for kind, own in kinds.items():
            for group in ("to_base", "parts", "base_parts"):
                for variant, values in own[group].items():
                    numbers = [values[column] for column in columns]
                    rows.append([name, kind, group, variant, own["images"], *numbers])
    return ["checkpoint", "questions", "comparison", "variant", "images", *columns], rows


def _kinds(
    contributions: Mapping[str, Any], checkpoints: Mapping[str, Any]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Checkpoint, kind and comparisons."""
    for name in checkpoints:
        for kind, own in contributions["checkpoints"].get(name, {}).items():
            yield name, kind, own


def _row(group: str, cells: tuple[str | int, ...], *gains: SheetCell) -> SheetRow:
    """A row; among its cells, the name of a variant is written out."""
    texts = (VARIANT_LABELS.get(cell, cell) if isinstance(cell, str) else cell for cell in cells)
    return SheetRow((*map(SheetCell, texts), *gains), group)


def _gain(values: Mapping[str, Any] | None) -> SheetCell:
    return difference(values["gain"], values["low"], values["high"]) if values else SheetCell()


def _points(values: Mapping[str, Any]) -> str:
    return f"{signed(values['gain'])} [{signed(values['low'])} to {signed(values['high'])}]"
