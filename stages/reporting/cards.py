"""Model cards: one Markdown file a checkpoint, so that weights which travel alone have their numbers and limits at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import yaml

from stages.core.licence import EMBEDDED, carried_licence
from stages.reporting.evidence import Evidence
from stages.reporting.labels import label
from stages.reporting.markdown import BY, bullets, facts, in_domain_row, limits, picture_row, rules_row, signs, table

_METHODS: Final = {"grpo": "GRPO (arXiv 2402.03300)", "sft": "supervised fine-tuning"}


def render_card(name: str, evidence: Evidence) -> str:
    """The card of one checkpoint, with the front matter that the Hugging Face hub reads."""
    entry, origin = evidence.metrics["checkpoints"][name], evidence.origins[name]
    trained = origin.get("checkpoint") or {}
    settings = trained.get("params") or origin.get("params") or {}
    base = (settings.get("base") or {}).get("source") or "not on record"
    method = _METHODS.get(entry["method"], entry["method"])
    kind = evidence.metrics["provenance"]["params"]["splits.kind"]
    floor = entry["in_domain"]["floor"]
    sizes = [
        f"{split.train} questions to train on, {split.test} to test"
        for split in evidence.splits
        if (split.axis, split.slug) == (entry["axis"], entry["cell"])
    ]
    parts = [
        _front_matter(base, entry, carried_licence(trained or origin)),
        f"# {label(name)}: multiple-choice questions on medical images",
        f"Trained with {method} from `{base}` on one {BY[entry['axis']]}, {label(entry['cell'])}.",
        "**Not a medical device. Not for clinical use.**",
        "## Data",
        bullets(
            [
                f"Corpus: `{trained.get('corpus') or origin.get('corpus') or 'not pinned'}`"
                + (" (drawn phantoms, not patients)" if evidence.synthetic == 1 else ""),
                f"Splits: {kind}; {sizes[0] if sizes else 'sizes not at hand'}",
                _leak(evidence, entry),
            ]
        ),
        "## Results on its own test questions",
        "In %, differences in points, 95% intervals in brackets (gains: paired, over pictures). The blind floor sees the options' texts "
        "and nothing else; visual gain is accuracy less that with another picture of the modality. What is missing was not measured.",
        table(["checkpoint", "n", "accuracy", "blind floor", "base", "gain", "p (Holm)"], [in_domain_row(name, entry)]),
        table(
            ["checkpoint", "above the floor", "visual gain", "over a black picture", "base's visual gain", "balanced", "n", "base there"],
            [picture_row(name, entry)],
        ),
        table(
            ["checkpoint", "chance", "majority letter", "floor", "normalised", "pooled", "base, fair", "zero-shot", "tag", "tag or raw"],
            [rules_row(name, entry)],
        ),
        "Signs of reward hacking:",
        *signs(evidence, {name: entry}),
        "## Intended use",
        "Research on training vision-language models: comparing methods, settings and data on multiple-choice questions.",
        "## Limits",
        bullets(
            [
                *limits(evidence, floor and floor["accuracy"]),
                "Trained on multiple choice only: open questions, several pictures and other languages were not tested.",
            ]
        ),
        "## What the base may have seen",
        _contamination(base),
        "## Settings",
        facts({key: value for key, value in settings.items() if key != "evaluate"}),
        "## Provenance",
        facts({key: value for key, value in (trained or origin).items() if key != "params"}),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base: str, entry: dict[str, Any], licence: Mapping[str, str]) -> str:
    said = yaml.safe_dump(dict(licence), sort_keys=False).rstrip()
    lines = ["---", said, "pipeline_tag: image-text-to-text", f"tags: [medical, vqa, multiple-choice, {entry['method']}]"]
    if "/" in base and not base.startswith(("infra/", "models/", ".", "/")):
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join([*lines, "---"])


def _leak(evidence: Evidence, entry: dict[str, Any]) -> str:
    found = [split for split in evidence.splits if (split.axis, split.slug) == (entry["axis"], entry["cell"])]
    if not found:
        return "Test images seen in training: not known here"
    return f"Test questions with an image that was trained on: {found[0].shared} of {found[0].test}"


def _contamination(base: str) -> str:
    if base == EMBEDDED:
        return (
            "The embedded base was trained from scratch on drawings like the sample's, made with another seed, with wrong options drawn "
            "from words that can be right: no picture of the sample, and not its bias (docs/embedded-sample.md)."
        )
    return (
        "What the base saw in its own training is not on record here, and of the published ones not known in full. Tests of order "
        "exchangeability on an OmniMedVQA mirror gave signals for all five vision-language models tested (arXiv 2606.10066): the "
        "accuracy of a base, and what training adds to it, may rest on questions seen before. Predictions can neither show nor exclude it."
    )
