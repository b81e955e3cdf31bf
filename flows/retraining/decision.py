"""The decision of a retraining with its numbers: JSON for programs, Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from flows.registry.drift import Drift
from flows.registry.manifest import Changes
from flows.retraining.gate import Judgement, Verdict
from flows.source.probe import PinnedCorpus
from stages.comparison.pairs import rows_of
from stages.core.errors import InputError
from stages.core.outputs import read_json, write_json
from stages.core.params import Retrain
from stages.reporting.labels import p_value, percent, signed

FOLDER: Final = Path("champions") / "decisions"
Outcome = Literal["first", "promoted", "kept", "refused"]
_DIGITS: Final = 6
_TITLES: Final[Mapping[Outcome, str]] = {
    "first": "Promoted: the first champion",
    "promoted": "Promoted",
    "kept": "Not promoted: the champion stays",
    "refused": "Refused: the data was not trained on",
}

Decision = dict[str, Any]
"""A record as it is written down: `outcome`, `reasons`, `corpus`, and what else there is to say."""


def make_decision(
    outcome: Outcome,
    reasons: list[str],
    corpus: PinnedCorpus,
    identity: str | None,
    rule: Retrain,
    *,
    champion: int | None,
    successor: int | None = None,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
    changes: Changes | None = None,
    drift: Sequence[Drift] | None = None,
    stages: Mapping[str, list[str]] | None = None,
    checkpoints: Mapping[str, str] | None = None,
    verdict: Verdict | None = None,
    stale_before: list[str] | None = None,
) -> Decision:
    """All that was known when it was decided.

    `identity`: the source's, as a probe gives it; `champion`, `successor`: versions before and, if
    promoted, after; `sizes`, `changes`: of the corpus and against the champion's, by modality;
    `drift`: of each feature, None if not judged; `stages`: how they ended to names; `checkpoints`:
    name -> "new weights" or "as before"; `stale_before`: stages that were not up to date before any
    new data.
    """
    return {
        "outcome": outcome,
        "reasons": reasons,
        "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "champion": champion,
        "successor": successor,
        "corpus": {**asdict(corpus), "identity": identity},
        "sizes": sizes,
        "changes": (
            changes
            and {
                slug: {part: asdict(change) for part, change in parts.items()}
                for slug, parts in changes.items()
            }
        ),
        "drift": None if drift is None else [asdict(each) for each in drift],
        "stale_before": stale_before,
        "stages": stages,
        "checkpoints": checkpoints,
        "rule": rule.model_dump(mode="json"),
        "judgements": (
            {name: _numbers(each) for name, each in verdict.judgements.items()} if verdict else None
        ),
    }


def write_decision(root: Path, decision: Decision) -> Path:
    """Keep a record under the next number; where."""
    number = (
        max(
            (int(path.stem) for path in (root / FOLDER).glob("*.json") if path.stem.isdigit()),
            default=0,
        )
        + 1
    )
    path = root / FOLDER / f"{number:04d}.json"
    write_json(path, decision)
    return path


def read_decisions(root: Path) -> list[Decision]:
    """All records, oldest first. InputError if one is damaged."""
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        decision = read_json(path, f"`git checkout` it, or remove it from {FOLDER}")
        if not isinstance(decision, dict) or not {"outcome", "corpus"} <= decision.keys():
            raise InputError(f"{path} is not a decision record: `git checkout` it, or remove it")
        found.append(decision)
    return found


def markdown(decision: Decision) -> str:
    """The record as a page."""
    lines = [
        f"# {_TITLES[decision['outcome']]}",
        "",
        *(f"- {reason}" for reason in decision["reasons"]),
        "",
    ]
    before, after = decision["champion"], decision["successor"]
    lines.append(
        f"Champion before: {before or 'none'}; now: {after or before or 'none'}. Corpus:"
        f" md5:{decision['corpus']['md5']}."
    )
    if decision["stages"]:
        lines += [
            "",
            "Stages: "
            + "; ".join(
                f"{len(names)} {how}" for how, names in decision["stages"].items() if names
            ),
        ]
    if decision["changes"]:
        lines += ["", *_changes_table(decision)]
    if before and decision["changes"]:
        lines += ["", *_drift_table(decision)]
    if decision["judgements"]:
        lines += ["", *_judgements_table(decision["judgements"])]
        rest = [name for name, how in decision["checkpoints"].items() if how == "as before"]
        lines += ["", f"As before, weight for weight: {', '.join(rest)}."] if rest else []
    return "\n".join(lines) + "\n"


def _numbers(judgement: Judgement) -> dict[str, Any]:
    cells = rows_of(judgement.cells, _DIGITS)
    for (
        cell
    ) in cells:  # adjusted over the cells of one checkpoint, which is no family that is decided on
        cell["challenger"], cell["champion"] = cell.pop("first"), cell.pop("second")
        del cell["p_holm"]
    macro = judgement.macro and {
        name: round(value, _DIGITS) for name, value in asdict(judgement.macro).items()
    }
    own = next(
        (cell for cell in cells if judgement.own and cell["tested"] == judgement.own.tested), None
    )
    return {
        "own": own and {**own, "p_holm": float(f"{judgement.p:.4g}")},
        "macro": macro,
        "cells": cells,
        "left_out": judgement.left_out,
        "better": judgement.better,
        "against": list(judgement.against),
    }


def _changes_table(decision: Decision) -> list[str]:
    rows = [
        "| modality | images | new | gone | changed | questions | new | gone | changed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for slug, parts in decision["changes"].items():
        cells = [slug]
        for part in ("images", "questions"):
            change = parts[part]
            cells += [
                str(decision["sizes"][slug][part]),
                *(str(change[name] or "") for name in ("added", "removed", "changed")),
            ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _drift_table(decision: Decision) -> list[str]:
    """Table of features that drifted beyond the threshold.

    A sentence if none did or drift is unknown.
    """
    found = decision.get("drift")
    if found is None:
        return ["Drift: not judged, for the manifest of one of the two corpora says nothing of it."]
    limit = decision["rule"]["warn_drift"]
    told = [each for each in (Drift(**row) for row in found) if each.is_beyond(limit)]
    if not told:
        return [
            f"Drift: of {len(found)} features none moved further than {limit} (retrain.warn_drift)."
        ]
    rows = [
        "| drift | feature | distance | by chance up to | more | less |",
        "|---|---|---:|---:|---|---|",
    ]
    rows += [
        f"| {each.scope} | {each.feature} | {each.distance:.2f} | {each.chance:.2f} | {each.grown}"
        f" | {each.shrunk} |"
        for each in told
    ]
    return rows


def _judgements_table(judgements: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            "| checkpoint | n | champion % | challenger % | difference | 95% interval | p (Holm) |"
            " axis mean | 95% interval | left out | |"
        ),
        "|---|---:|---:|---:|---:|---|---:|---:|---|---:|---|",
    ]
    for name, each in judgements.items():
        own, macro = each["own"], each["macro"]
        word = "better" if each["better"] else "passed"
        if each["against"]:
            word = "not passed"
        if own is None or macro is None:
            rows.append(f"| {name} | 0 | - | - | - | - | - | - | - | {each['left_out']} | {word} |")
            continue
        rows.append(
            f"| {name} | {own['n']} | {percent(own['champion'])} | {percent(own['challenger'])} |"
            f" {signed(own['difference'])} | {signed(own['low'])} to {signed(own['high'])} |"
            f" {p_value(own['p_holm'])} | {signed(macro['difference'])} | {signed(macro['low'])} to"
            f" {signed(macro['high'])} | {each['left_out']} | {word} |"
        )
    return rows
