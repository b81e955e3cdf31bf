"""The published model card: the report's card plus usage and metadata for a hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.cards.licence import carried_licence
from stages.core.cards.templating import markdown, render_markdown
from stages.core.errors import InputError
from stages.core.params import Checkpoint
from stages.prompts.styles import PROMPTS


@dataclass(frozen=True)
class Usage:
    """What somebody has to know to ask it as it was asked here."""

    where: str
    """The repository's id."""
    size: int
    """Of its images, in pixels."""
    tokens: int
    """Longest answer."""
    dtype: str
    """What answers were computed in."""


def render(
    report: str,
    name: str,
    checkpoint: Checkpoint,
    facts: dict[str, Any],
    usage: Usage,
    datasets: list[str],
) -> str:
    """Render the card from the report's (`report`), training facts (`facts`), and hub data sets.

    Raises InputError if the report's is no card.
    """
    begin, _, rest = report.partition("---\n")
    _, end, body = rest.partition("\n---\n")
    if begin or not end:
        raise InputError(
            f"report/cards/{name}.md is not a model card: run `dvc repro --single-item --force"
            " report`"
        )
    settings = facts.get("params") or {}
    return render_markdown(
        Path(__file__).with_name("card.md.j2"),
        {},
        front=_front(checkpoint, facts, datasets),
        body=markdown(body.rstrip()),
        usage=usage,
        words=PROMPTS["evaluate"][(settings.get("prompt") or {}).get("style", "no-think")],
        name=name,
    )


def _front(checkpoint: Checkpoint, facts: dict[str, Any], datasets: list[str]) -> dict[str, Any]:
    """What a hub reads: base, licence, data, task, tags."""
    base = facts.get("base_model") or {}
    source = str(
        base.get("source") or ((facts.get("params") or {}).get("base") or {}).get("source") or ""
    )
    hub = bool(base.get("commit"))
    front: dict[str, Any] = {
        **carried_licence(facts),
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    if hub:
        front |= {"base_model": source, "base_model_relation": "finetune"}
    if datasets:
        front["datasets"] = datasets
    front["tags"] = [
        "medical",
        "visual-question-answering",
        "multiple-choice",
        checkpoint.method,
        checkpoint.split,
    ]
    return front
