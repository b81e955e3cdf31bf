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
    """Settings of the evaluation, for the example in the card."""

    repo_id: str
    """Repository of the hub."""
    image_size: int
    """Height and width of the images in pixels."""
    max_new_tokens: int
    """Token limit of an answer."""
    dtype: str
    """Data type in which answers were computed."""


def render(
    report: str,
    name: str,
    checkpoint: Checkpoint,
    provenance: dict[str, Any],
    usage: Usage,
    datasets: list[str],
) -> str:
    """Render the card from the report's card (`report`), training provenance and hub data sets.

    Raises InputError if `report` is not a model card.
    """
    before, _, rest = report.partition("---\n")
    _, end, body = rest.partition("\n---\n")
    if before or not end:
        raise InputError(
            f"report/cards/{name}.md is not a model card: run `dvc repro --single-item --force"
            " report`"
        )
    settings = provenance.get("params") or {}
    return render_markdown(
        Path(__file__).with_name("card.md.j2"),
        {},
        front=_front_matter(checkpoint, provenance, datasets),
        body=markdown(body.rstrip()),
        usage=usage,
        words=PROMPTS["evaluate"][(settings.get("prompt") or {}).get("style", "no-think")],
        name=name,
    )


def _front_matter(
    checkpoint: Checkpoint, provenance: dict[str, Any], datasets: list[str]
) -> dict[str, Any]:
    """Metadata for a hub: base model, licence, data sets, task and tags."""
    base = provenance.get("base_model") or {}
    settings = (provenance.get("params") or {}).get("base") or {}
    front: dict[str, Any] = {
        **carried_licence(provenance),
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    if base.get("commit"):  # the base model is from a hub
        source = str(base.get("source") or settings.get("source") or "")
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
