"""Report and model cards as Markdown, from report.md.j2 and card.md.j2.

Text written by a model or a data set is escaped or set as code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from stages.core.cards.licence import EMBEDDED, carried_licence
from stages.core.cards.templating import render_markdown
from stages.reporting import parts, tables
from stages.reporting.evidence import Evidence, count_refusals, group_origins
from stages.reporting.headline import DISCLAIMER, conclusion, small_tests, verdict
from stages.reporting.labels import AXIS_LABELS, clip, label, percent, signed
from stages.reporting.released import published_beside
from stages.reporting.sheets import flat
from stages.reporting.terminal import sentences

_FOLDER: Final = Path(__file__).parent
_FILTERS: Final[dict[str, Callable[..., str]]] = {
    "clip": clip,
    "label": label,
    "lines": lambda tree: "\n".join(f"{key}: {value}" for key, value in flat(tree).items()),
    "percent": percent,
    "signed": signed,
    "verdict": verdict,
}


def render_report(evidence: Evidence) -> str:
    """Render the whole report as GitHub Markdown."""
    return render_markdown(
        _FOLDER / "report.md.j2",
        _FILTERS,
        evidence=evidence,
        metrics=evidence.metrics,
        checkpoints=evidence.metrics["checkpoints"],
        sentences=sentences(evidence.metrics),
        conclusion=conclusion(evidence.metrics["summary"]),
        disclaimer=DISCLAIMER,
        small_tests=small_tests(evidence.metrics["checkpoints"]),
        tables=tables,
        parts=parts,
        axis_labels=AXIS_LABELS,
        refusals=count_refusals(evidence.quarantine),
        published=published_beside(evidence),
        origins=group_origins(evidence.origins),
    )


def render_card(name: str, evidence: Evidence) -> str:
    """Render the model card of one checkpoint, with the front matter that the hub reads."""
    entry = evidence.metrics["checkpoints"][name]
    provenance = evidence.weights.get(name) or evidence.origins[name]
    settings = provenance.get("params") or evidence.origins[name].get("params") or {}
    base = (settings.get("base") or {}).get("source") or "not recorded"
    cell = (entry["axis"], entry["cell"])
    splits = [split for split in evidence.splits if (split.axis, split.slug) == cell]
    blind_baseline = entry["in_domain"]["blind_baseline"]
    return render_markdown(
        _FOLDER / "card.md.j2",
        _FILTERS,
        front=_front_matter(base, carried_licence(provenance)),
        base=base,
        embedded=base == EMBEDDED,
        name=name,
        entry=entry,
        folds=evidence.folds.get(name, ()),
        checkpoints={name: entry},
        contributions=_contributions_of(name, evidence),
        corpus=provenance.get("corpus") or evidence.origins[name].get("corpus") or "not pinned",
        kind=evidence.metrics["provenance"]["params"]["splits.kind"],
        split=splits[0] if splits else None,
        blind_baseline=blind_baseline and blind_baseline["accuracy"],
        evidence=evidence,
        tables=tables,
        parts=parts,
        axis_labels=AXIS_LABELS,
        settings={key: value for key, value in settings.items() if key != "evaluate"},
        provenance={key: value for key, value in provenance.items() if key != "params"},
    )


def _contributions_of(name: str, evidence: Evidence) -> Mapping[str, Any] | None:
    """The contributions in metrics.json if this checkpoint has any."""
    found: Mapping[str, Any] | None = evidence.metrics.get("contributions")
    return found if found and name in found["checkpoints"] else None


def _front_matter(base: str, licence: Mapping[str, str]) -> dict[str, Any]:
    """Licence, and the base if it is a repository of the Hugging Face hub."""
    on_hub = "/" in base and not base.startswith(("infra/", "models/", ".", "/"))
    return {**licence, "base_model": base} if on_hub else {**licence}
