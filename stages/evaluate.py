"""Stage `evaluate@<checkpoint>`: greedy answers to every test question of its axis, kept one row a question.

    python -m stages.evaluate ct        the checkpoint on the test splits of all modalities
    python -m stages.evaluate base      the base on the test splits of both axes

No number is computed here: every table is derived from the rows (stage report).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from stages import layout
from stages.cli import run_stage
from stages.corpus.modalities import AXES
from stages.corpus.problems import parse_problem, parse_solution
from stages.corpus.splits import read_split
from stages.errors import InputError
from stages.outputs import read_json, whole_file
from stages.params import load_params
from stages.progress import counted
from stages.provenance import provenance
from stages.scoring.answers import extract_answer

ABLATIONS: Final = ("blank", "shuffled")
_ABLATED: Final = {"image": pa.string(), "output": pa.string(), "answer": pa.string(), "correct": pa.bool_()}
SCHEMA: Final = pa.schema(
    [
        ("checkpoint", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("modality", pa.string()),
        ("question_type", pa.string()),
        ("modality_test", pa.bool_()),
        ("task_test", pa.bool_()),
        ("image", pa.string()),
        ("n_options", pa.int32()),
        ("gold", pa.string()),
        ("output", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("completion_tokens", pa.int32()),
        *((f"{variant}_{field}", kind) for variant in ABLATIONS for field, kind in _ABLATED.items()),
    ]
)
"""One row a (checkpoint, question). `modality_test`, `task_test`: is the question in the test split of that axis.

`blank_*`, `shuffled_*`: the same question asked of a black picture, and of `shuffled_image`, the picture of another question of
its modality; null where that was not done.
"""


def main() -> None:
    """Test one policy and write predictions/<checkpoint>.parquet."""
    arguments = argparse.ArgumentParser(
        prog="python -m stages.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("checkpoint", help="base, or a key of checkpoints in params.yaml")
    name = arguments.parse_args().checkpoint
    params = load_params()
    evaluation = params.require_evaluation(name)
    questions = test_questions(evaluation.axis, params.splits.kind)
    folder, stage = layout.model(name), "base" if name == "base" else f"train@{name}"
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: run `dvc repro {stage}`")
    facts = provenance({"splits.kind": params.splits.kind, "base": params.base, "prompt": params.prompt, "evaluate": params.evaluate})
    facts["checkpoint"] = _checkpoint_provenance(folder, stage)

    import torch

    from stages.grpo.generate import BLANK, Question, answer_greedily  # imports torch
    from stages.grpo.policy import load_policy, load_processor
    from stages.grpo.prompts import ask

    torch.set_num_threads(params.base.threads)
    policy = load_policy(folder, dtype=params.base.dtype, attention=params.base.attention)
    partner = exchange(questions) if params.evaluate.ablations else {}
    asked = []
    for item in questions:
        pictures = {"real": item["image"]} | ({"blank": BLANK} if params.evaluate.ablations else {})
        pictures |= {"shuffled": partner[item["image"]]} if item["image"] in partner else {}
        asked.append(Question(ask(item["problem"], params.prompt.style, "evaluate"), pictures))
    batches = answer_greedily(
        policy,
        load_processor(folder),
        asked,
        batch_size=params.evaluate.batch_size,
        max_new_tokens=params.evaluate.max_new_tokens,
    )
    rows = []
    answered = counted(chain.from_iterable(batches), len(questions), name, "question")
    for item, question, completions in zip(questions, asked, answered, strict=True):
        _, options = parse_problem(item["problem"])
        gold = parse_solution(item["solution"])
        row = {"checkpoint": name, **{field: item[field] for field in SCHEMA.names if field in item}}
        row |= {"n_options": len(options), "gold": gold, "completion_tokens": completions["real"].tokens}
        for variant, completion in completions.items():
            prefix = "" if variant == "real" else f"{variant}_"
            answer = extract_answer(completion.text, options)
            row |= {f"{prefix}output": completion.text, f"{prefix}answer": answer, f"{prefix}correct": answer == gold}
            row |= {f"{prefix}image": question.pictures[variant]} if prefix else {}
        rows.append(row)
    rows.sort(key=lambda row: row["question_id"])
    schema = SCHEMA.with_metadata({"provenance": json.dumps(facts)})
    with whole_file(layout.predictions(name)) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    print(f"{name}: {sum(row['correct'] for row in rows)} of {len(rows)} right -> {layout.predictions(name)}")


def test_questions(axis: str, kind: str) -> list[dict[str, Any]]:
    """The distinct test questions of an axis ("modality", "task", "all") in one kind of split, with the axes each is a test question of.

    In an order in which the questions of one picture stand together, next to those of the one it is exchanged with.
    """
    tests: dict[str, set[str]] = {}
    found: dict[str, dict[str, Any]] = {}
    for each, slugs in AXES.items():
        items = [item for slug in slugs for item in read_split(layout.split(each, slug, "test", kind))]
        tests[each] = {item["question_id"] for item in items}
        if axis in (each, "all"):
            found |= {item["question_id"]: item for item in items}
    for name, item in found.items():
        item |= {f"{each}_test": name in members for each, members in tests.items()}
    return sorted(found.values(), key=lambda item: (item["modality"], _draw(item["image"]), item["question_id"]))


def exchange(questions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Image -> another image of its modality: the next in a fixed random order, round again at the end.

    None stays with itself, and a modality with one image has none to exchange.
    """
    partner: dict[str, str] = {}
    for modality in sorted({item["modality"] for item in questions}):
        images = sorted({item["image"] for item in questions if item["modality"] == modality}, key=_draw)
        partner |= dict(zip(images, images[1:] + images[:1], strict=True)) if len(images) > 1 else {}
    return partner


def _draw(name: str) -> bytes:
    """A place in an order that has nothing to do with the name, and is the same on every machine."""
    return hashlib.sha256(name.encode()).digest()


def _checkpoint_provenance(folder: Path, stage: str) -> dict[str, Any]:
    """What the checkpoint says of its making; InputError, naming the stage that makes it, if it says nothing."""
    path = folder / "provenance.json"
    remedy = f"make the checkpoint again: `dvc repro --single-item --force {stage}`"
    facts = read_json(path, f"it says where the answers come from; {remedy}")
    if not isinstance(facts, dict):
        raise InputError(f"{path} holds no provenance but {facts!r:.40}; {remedy}")
    return facts


if __name__ == "__main__":
    run_stage(main)
