"""The card a checkpoint is published with: the report's, with what a hub and somebody without this project need to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import yaml

from stages.core.errors import InputError
from stages.core.licence import carried_licence
from stages.core.params import Checkpoint
from stages.prompts.styles import PROMPTS

_LOAD: Final = '''## How to load

With transformers 5.17 or newer and nothing else of the project it comes from.

```python
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

where = {where!r}  # or the folder it was downloaded to
model = AutoModelForImageTextToText.from_pretrained(where, dtype=torch.{dtype})
processor = AutoProcessor.from_pretrained(where)


def answer(picture: Image.Image, problem: str) -> str:
    """`picture`: RGB, scaled to {size}x{size} as in training. `problem`: "What is seen? A)Cyst, B)Nodule"."""
    words = {words!r}.replace("{{problem}}", problem)
    chat = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": words}}]}}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[picture], return_tensors="pt").to(model.device)
    written = model.generate(**inputs, do_sample=False, max_new_tokens={tokens})
    return processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
```

`predictions/{name}.parquet` holds an answer to every test question, from which all numbers above can be computed again; `provenance.json`
holds commit, corpus, settings and versions.
'''


@dataclass(frozen=True)
class Usage:
    """What somebody has to know to ask it as it was asked here."""

    where: str
    """The repository's id."""
    size: int
    """Of its pictures, in pixels."""
    tokens: int
    """Longest answer."""
    dtype: str
    """What answers were computed in."""


def render(report: str, name: str, checkpoint: Checkpoint, facts: dict[str, Any], usage: Usage, datasets: list[str]) -> str:
    """The card, from the report's (`report`), what the checkpoint says of its making (`facts`), and data sets of the hub.

    Raises InputError if the report's is no card.
    """
    begin, _, rest = report.partition("---\n")
    _, end, body = rest.partition("\n---\n")
    if begin or not end:
        raise InputError(f"report/cards/{name}.md is no model card: run `dvc repro --single-item --force report`")
    settings = facts.get("params") or {}
    load = _LOAD.format(
        where=usage.where,
        dtype=usage.dtype,
        size=usage.size,
        words=PROMPTS["evaluate"][(settings.get("prompt") or {}).get("style", "no-think")],
        tokens=usage.tokens,
        name=name,
    )
    return f"---\n{_front(checkpoint, facts, datasets)}---\n{body.rstrip()}\n\n{load}"


def _front(checkpoint: Checkpoint, facts: dict[str, Any], datasets: list[str]) -> str:
    """What a hub reads: base, licence, data, task, tags."""
    base = facts.get("base_model") or {}
    source = str(base.get("source") or ((facts.get("params") or {}).get("base") or {}).get("source") or "")
    hub = bool(base.get("commit"))
    front: dict[str, Any] = {**carried_licence(facts), "library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if hub:
        front |= {"base_model": source, "base_model_relation": "finetune"}
    if datasets:
        front["datasets"] = datasets
    front["tags"] = ["medical", "visual-question-answering", "multiple-choice", checkpoint.method, checkpoint.split]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
