"""The model card that stage train writes into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.core.cards.licence import carried_licence
from stages.core.cards.templating import render_markdown
from stages.core.params import Params


def checkpoint_card(name: str, questions: int, params: Params, facts: dict[str, Any]) -> str:
    """README.md of a checkpoint: training data, base, and what it is not for.

    `questions`: number of training questions; `facts`: the checkpoint's provenance.
    """
    checkpoint = params.checkpoints[name]
    return render_markdown(
        Path(__file__).with_name("checkpoint_card.md.j2"),
        {},
        front={"base_model": params.base.source, **carried_licence(facts)},
        name=name,
        checkpoint=checkpoint,
        sft=checkpoint.method == "sft",
        questions=questions,
        num_generations=params.grpo_for(name).num_generations,
        style=params.prompt.style,
        base=params.base,
        corpus=facts["corpus"],
    )
