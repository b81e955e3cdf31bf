"""Stage `evaluate@<checkpoint>`: greedy answers to every test question of its axis, kept one row a question.

    python -m stages.evaluate ct        the checkpoint on the test splits of all modalities
    python -m stages.evaluate base      the base on the test splits of both axes

No number is computed here: every table is derived from the rows (stage report).
"""

from __future__ import annotations

import argparse
import json
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
from stages.outputs import whole_file
from stages.params import load_params
from stages.progress import counted
from stages.provenance import provenance
from stages.scoring.answers import extract_answer

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
    ]
)
"""One row a (checkpoint, question). `modality_test`, `task_test`: is the question in the test split of that axis."""


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

    from stages.grpo.generate import answer_greedily  # imports torch
    from stages.grpo.policy import load_policy, load_processor
    from stages.grpo.prompts import ask

    policy = load_policy(folder, dtype=params.base.dtype, attention=params.base.attention)
    asked = [(item["image"], ask(item["problem"], params.prompt.style, "evaluate")) for item in questions]
    batches = answer_greedily(
        policy,
        load_processor(folder),
        asked,
        batch_size=params.evaluate.batch_size,
        max_new_tokens=params.evaluate.max_new_tokens,
    )
    rows = []
    for item, completion in zip(questions, counted(chain.from_iterable(batches), len(questions), name, "question"), strict=True):
        _, options = parse_problem(item["problem"])
        gold, answer = parse_solution(item["solution"]), extract_answer(completion.text, options)
        kept = {field: item[field] for field in SCHEMA.names if field in item}
        said = {"n_options": len(options), "gold": gold, "output": completion.text, "answer": answer, "correct": answer == gold}
        rows.append({"checkpoint": name, **kept, **said, "completion_tokens": completion.tokens})
    rows.sort(key=lambda row: row["question_id"])
    schema = SCHEMA.with_metadata({"provenance": json.dumps(facts)})
    with whole_file(layout.predictions(name)) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    print(f"{name}: {sum(row['correct'] for row in rows)} of {len(rows)} right -> {layout.predictions(name)}")


def test_questions(axis: str, kind: str) -> list[dict[str, Any]]:
    """The distinct test questions of an axis ("modality", "task", "all") in one kind of split, with the axes each is a test question of.

    Sorted by image, so that the questions of one picture stand together.
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
    return sorted(found.values(), key=lambda item: (item["image"], item["question_id"]))


def _checkpoint_provenance(folder: Path, stage: str) -> dict[str, Any]:
    """What the checkpoint says of its making; InputError, naming the stage that makes it, if it says nothing."""
    path = folder / "provenance.json"
    remedy = f"make the checkpoint again: `dvc repro --single-item --force {stage}`"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so it cannot be said where the answers come from; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} holds no provenance but {facts!r:.40}; {remedy}")
    return facts


if __name__ == "__main__":
    run_stage(main)
