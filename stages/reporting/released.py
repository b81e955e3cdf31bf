"""Released splits in the report: what joined, and published numbers for the same test questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from stages.reporting.evidence import Evidence
from stages.reporting.labels import percent
from stages.reporting.tables import MISSING, Column, Sheet, SheetCell, SheetRow
from stages.scoring.published.entries import Published
from stages.scoring.published.med_r1 import HEADLINES, NO_THINK_MINUS_THINK
from stages.scoring.published.released_splits import SPLITS
from stages.scoring.published.third_party import THIRD_PARTY
from stages.scoring.tables import CrossTable
from stages.taxonomy import AXIS_NAMES

_MIN_JOINED: Final = 0.99
"""Share of a test file that must be in the corpus: 3 of Med-R1's 2,392 modality questions, which
have two equal options, never are.
"""


def summarise_released(content: Mapping[str, Any]) -> dict[str, Any]:
    """For metrics.json, from data/released.json: what joined, and for which axes Med-R1's tests."""
    files = content["files"]
    faults = Counter(each["fault"] for each in content["not_joined"])
    both = content["in_train_and_test"]
    return {
        "folder": content["folder"],
        "questions": sum(each["questions"] for each in files),
        "joined": sum(each["joined"] for each in files),
        "not_joined": dict(sorted(faults.items())),
        "unused": content["unused"],
        "records_unused": content["records_unused"],
        "other_types": content["other_types"],
        "in_train_and_test": {axis: sum(map(len, slugs.values())) for axis, slugs in both.items()},
        "med_r1": _med_r1_axes(files),
    }


def released_sentence(released: Mapping[str, Any]) -> str:
    """Sentence on the released questions that joined the corpus, and those that did not."""
    text = f"Of {released['questions']} released questions {released['joined']} joined the corpus"
    if faults := released["not_joined"]:
        text += f" (not: {', '.join(f'{name} {count}' for name, count in faults.items())})"
    if unused := released["unused"]:
        names = ", ".join(each["path"] for each in unused)
        text += f"; {sum(each['questions'] for each in unused)} in files of no split here ({names})"
    if records := released["records_unused"]:
        text += f"; {records} questions of the corpus are in none of the files"
    if both := sum(released["in_train_and_test"].values()):
        text += f"; {both} of the test questions are training questions of the same split"
    return f"{text}."


def same_questions(metrics: Mapping[str, Any]) -> list[str]:
    """The axes whose test questions are those of Med-R1, so that published numbers compare."""
    splits = metrics["splits"] or {}
    return list((splits.get("released") or {}).get("med_r1", []))


def headlines_beside(accuracies: Mapping[str, CrossTable], metrics: Mapping[str, Any]) -> Sheet:
    """Med-R1's headline numbers and ours, for the axes with its test questions.

    `accuracies`: axis -> the cross table. Ours are of the checkpoints trained by GRPO on one split;
    "relative" is to the base's mean, as published.
    """
    columns = (
        Column("measure", "text"),
        *map(Column, ("published", "ours, in-domain", "ours, all cells")),
        *(Column(name, "text") for name in ("unit", "source", "caveat")),
    )
    rows = []
    for each in HEADLINES:
        if each.axis in same_questions(metrics) and each.axis in accuracies:
            ours = _ours(each, accuracies[each.axis], metrics["checkpoints"])
            values = (each.measure, f"{each.value:.2f}", *ours, each.unit, each.source, each.caveat)
            cells = (v if isinstance(v, SheetCell) else SheetCell(v) for v in values)
            rows.append(SheetRow(tuple(cells)))
    return Sheet(columns, tuple(rows))


def published_beside(evidence: Evidence) -> dict[str, Any] | None:
    """What pages show of published numbers; None unless the test questions are the same."""
    axes = same_questions(evidence.metrics)
    if not axes:
        return None
    accuracies = {axis: tables.accuracy for axis, tables in evidence.tables.items()}
    return {
        "headlines": headlines_beside(accuracies, evidence.metrics),
        "differences": {axis: NO_THINK_MINUS_THINK[axis] for axis in axes},
        "others": third_parties(),
    }


def third_parties() -> Sheet:
    """Numbers of other models and tests, with source and caveat."""
    names = ("model", "measure", "value", "unit", "source", "caveat")
    columns = tuple(Column(name) if name == "value" else Column(name, "text") for name in names)
    rows = [
        (each.subject, each.measure, str(each.value), each.unit, each.source, each.caveat)
        for each in THIRD_PARTY
    ]
    return Sheet(columns, tuple(SheetRow(tuple(map(SheetCell, row))) for row in rows))


def _ours(
    published: Published, table: CrossTable, checkpoints: Mapping[str, Any]
) -> tuple[SheetCell | str, SheetCell | str]:
    """Our mean accuracy in-domain, and over all cells, in the published unit."""
    own = {
        name: cell
        for name, cell in table.own.items()
        if checkpoints[name]["method"] == "grpo" and cell in table.questions
    }
    base = table.values["base"]["macro"]
    if set(own.values()) != {each.slug for each in SPLITS if each.axis == published.axis}:
        return MISSING, MISSING  # a mean over fewer cells would not compare
    means = (
        _mean([table.values[name][cell] for name, cell in own.items()]),
        _mean([table.values[name]["macro"] for name in own]),
    )
    in_domain, everywhere = (_in_unit(mean, base, published) for mean in means)
    return in_domain, everywhere


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _in_unit(value: float | None, base: float | None, published: Published) -> SheetCell | str:
    if value is None:
        return MISSING
    if published.unit == "percent":
        return percent(value, 2)
    return f"{100 * (value / base - 1):+.2f}" if base else MISSING


def _med_r1_axes(files: list[dict[str, Any]]) -> list[str]:
    """The axes whose test files are those of Med-R1, by content, and nearly all of which joined."""
    tests = {
        (each["axis"], each["split"]): each["sha256"]
        for each in files
        if each["part"] == "test" and each["joined"] >= _MIN_JOINED * each["questions"]
    }
    known = {(each.axis, each.slug) for each in SPLITS}
    other: set[str] = {
        each.axis for each in SPLITS if tests.get((each.axis, each.slug)) != each.test_digest
    }
    # a mean over other cells, too, would not compare
    other |= {each["axis"] for each in files if (each["axis"], each["split"]) not in known}
    return [axis for axis in AXIS_NAMES if axis not in other]
