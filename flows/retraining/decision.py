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
"""A decision record: `outcome`, `reasons`, `corpus`, and the further keys of `make_decision`."""


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
    unused: Mapping[str, int] | None = None,
) -> Decision:
    """The record of a decision.

    `identity`: of the source, as probed; `champion`, `successor`: versions before and, if promoted,
    after; `sizes`: of the corpus by modality; `changes`: from the champion's corpus; `drift`: of
    each feature, None if not judged; `stages`: state -> names; `checkpoints`: name -> "new
    checkpoint", "new weights" or "as before"; `stale_before`: stages that were stale before the new
    data; `unused`: modality -> new questions that are in no released split, None if there are none.
    """
    changes_json: Any = changes and {
        slug: {part: asdict(change) for part, change in parts.items()}
        for slug, parts in changes.items()
    }
    judgements = verdict and {name: _numbers(each) for name, each in verdict.judgements.items()}
    return {
        "outcome": outcome,
        "reasons": reasons,
        "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "champion": champion,
        "successor": successor,
        "corpus": {**asdict(corpus), "identity": identity},
        "sizes": sizes,
        "changes": changes_json,
        "unused_questions": unused,
        "drift": None if drift is None else [asdict(each) for each in drift],
        "stale_before": stale_before,
        "stages": stages,
        "checkpoints": checkpoints,
        "rule": rule.model_dump(mode="json"),
        "judgements": judgements,
    }


def write_decision(root: Path, decision: Decision) -> Path:
    """Write a record under the next number; its path."""
    stems = [path.stem for path in (root / FOLDER).glob("*.json")]
    number = max((int(stem) for stem in stems if stem.isdigit()), default=0) + 1
    path = root / FOLDER / f"{number:04d}.json"
    write_json(path, decision)
    return path


def read_decisions(root: Path) -> list[Decision]:
    """All records, oldest first; InputError if one is corrupt."""
    decisions = []
    for path in sorted((root / FOLDER).glob("*.json")):
        decision = read_json(path, f"`git checkout` it, or remove it from {FOLDER}")
        if not isinstance(decision, dict) or not {"outcome", "corpus"} <= decision.keys():
            raise InputError(f"{path} is not a decision record: `git checkout` it, or remove it")
        decisions.append(decision)
    return decisions


def markdown(decision: Decision) -> str:
    """A decision record as a Markdown page."""
    lines = [
        f"# {_TITLES[decision['outcome']]}",
        "",
        *(f"- {reason}" for reason in decision["reasons"]),
        "",
    ]
    before = decision["champion"]
    after = decision["successor"]
    lines.append(
        f"Champion before: {before or 'none'}; now: {after or before or 'none'}. Corpus:"
        f" md5:{decision['corpus']['md5']}."
    )
    if decision["stages"]:
        counts = [f"{len(names)} {state}" for state, names in decision["stages"].items() if names]
        lines += ["", f"Stages: {'; '.join(counts)}"]
    if decision["changes"]:
        lines += ["", *_changes_table(decision)]
    if before and decision["changes"]:
        lines += ["", *_drift_table(decision)]
    if unused := decision.get("unused_questions"):
        counts = [f"{slug} {count}" for slug, count in unused.items()]
        lines += ["", f"New questions in no released split, not used: {', '.join(counts)}."]
    if decision["judgements"]:
        lines += ["", *_judgements_table(decision["judgements"])]
        same = [name for name, state in decision["checkpoints"].items() if state == "as before"]
        lines += ["", f"Unchanged, weight for weight: {', '.join(same)}."] if same else []
    return "\n".join(lines) + "\n"


def _numbers(judgement: Judgement) -> dict[str, Any]:
    cells = rows_of(judgement.cells, _DIGITS)
    for cell in cells:
        cell["challenger"] = cell.pop("first")
        cell["champion"] = cell.pop("second")
        # adjusted over the cells of one checkpoint, which are not the family that is decided on
        del cell["p_holm"]
    macro = judgement.macro and {
        name: round(value, _DIGITS) for name, value in asdict(judgement.macro).items()
    }
    own_name = judgement.own and judgement.own.tested
    own = next((cell for cell in cells if cell["tested"] == own_name), None)
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
    """Table of features that drifted beyond the threshold; a sentence if none did or unknown."""
    if decision.get("drift") is None:
        return ["Drift: not judged, because the manifest of one of the two corpora lacks it."]
    limit = decision["rule"]["warn_drift"]
    drifts = [Drift(**row) for row in decision["drift"]]
    beyond = [drift for drift in drifts if drift.is_beyond(limit)]
    if not beyond:
        return [f"Drift: none of {len(drifts)} features beyond {limit} (retrain.warn_drift)."]
    rows = [
        "| drift | feature | distance | by chance up to | more | less |",
        "|---|---|---:|---:|---|---|",
    ]
    rows += [
        f"| {drift.scope} | {drift.feature} | {drift.distance:.2f} | {drift.chance:.2f} |"
        f" {drift.grown} | {drift.shrunk} |"
        for drift in beyond
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
        own = each["own"]
        macro = each["macro"]
        result = "better" if each["better"] else "passed"
        if each["against"]:
            result = "not passed"
        end = f"{each['left_out']} | {result} |"
        if own is None or macro is None:
            rows.append(f"| {name} | 0 | - | - | - | - | - | - | - | {end}")
            continue
        rows.append(
            f"| {name} | {own['n']} | {percent(own['champion'])} | {percent(own['challenger'])} |"
            f" {signed(own['difference'])} | {signed(own['low'])} to {signed(own['high'])} |"
            f" {p_value(own['p_holm'])} | {signed(macro['difference'])} | {signed(macro['low'])} to"
            f" {signed(macro['high'])} | {end}"
        )
    return rows
