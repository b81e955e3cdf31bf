"""A finished pipeline to report on, made up but plausible: predictions, training logs, splits and quarantine.

The same arguments give the same files. Questions, options and outputs look like those of the embedded sample; the
accuracies are drawn, not earned.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages import layout
from stages.corpus.modalities import AXES, MODALITIES, QUESTION_TYPES
from stages.corpus.problems import LETTERS, format_problem, format_solution
from stages.corpus.quarantine import Row, write_quarantine
from stages.evaluate import SCHEMA
from stages.outputs import write_json
from stages.reporting.figures import CURVES
from stages.scoring.tables import CELLS

REPOSITORY = Path(__file__).parents[1]
CHECKPOINTS = {slug: axis for axis, slugs in AXES.items() for slug in slugs}
SLICES = ("question_id", "dataset", "modality", "question_type")
WORDS = ("Cyst", "Nodule", "Chest", "Severe", "Spleen", "Macula", "Left", "Two")
PROVENANCE = {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "corpus": "md5:5d41402abc4b2a76b9719d911017c592",
    "params": {"evaluate": {"batch_size": 64, "max_new_tokens": 12}, "prompt": {"style": "no-think"}},
    "versions": {"python": "3.11.0", "numpy": "2.4.6"},
}


def write_project(root: Path, *, per_cell: int = 20, dataset: str = "Phantom", empty: tuple[str, str] | None = None) -> None:
    """Write under `root` all that stage report reads, with the repository's own params.yaml.

    There are `per_cell` questions for each modality and question type, but none in `empty`; the data set of modality x
    is called "<dataset> x".
    """
    shutil.copy(REPOSITORY / layout.PARAMS, root / layout.PARAMS)
    questions = make_questions(per_cell=per_cell, dataset=dataset, empty=empty)
    for axis, column in CELLS.items():
        for slug in AXES[axis]:
            rows = questions[questions[column] == slug]
            for part, chosen in (("test", rows[f"{axis}_test"]), ("train", ~rows[f"{axis}_test"])):
                write_json(root / layout.split(axis, slug, part), [_split_record(row) for row in rows[chosen].to_dict("records")])
    for name in ["base", *CHECKPOINTS]:
        write_predictions(root / layout.predictions(name), make_predictions(questions, name))
    for name in CHECKPOINTS:
        path = root / layout.training_log(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        make_training_log(name).to_csv(path, index=False)
    _write_quarantine(root, questions)


def make_questions(*, per_cell: int = 20, dataset: str = "Phantom", empty: tuple[str, str] | None = None) -> pd.DataFrame:
    """Questions of every modality and type, about two to an image, a fifth of them in the test split of each axis."""
    rng = np.random.default_rng(1)
    rows: list[tuple[Any, ...]] = []
    for modality in MODALITIES:
        for kind in QUESTION_TYPES:
            for _ in range(0 if (modality, kind) == empty else per_cell):
                options = [str(word) for word in rng.permutation(WORDS)[: int(rng.integers(2, 5))]]
                image = f"data/images/{modality}/{rng.integers(per_cell * 3):04d}.png"
                number = len(rows)
                right = int(rng.integers(len(options)))
                rows.append((f"{dataset}_{number:05d}", f"{dataset} {modality}", modality, kind, image, options, right))
    frame = pd.DataFrame(rows, columns=["question_id", "dataset", "modality", "question_type", "image", "options", "right"])
    for axis in AXES:
        frame[f"{axis}_test"] = rng.random(len(frame)) < 0.2
    return frame


def make_predictions(questions: pd.DataFrame, checkpoint: str) -> pd.DataFrame:
    """What a checkpoint writes for its test questions: the base guesses and loses the form, the others less so."""
    axis = CHECKPOINTS.get(checkpoint)
    rng = np.random.default_rng([2, sorted(["base", *CHECKPOINTS]).index(checkpoint)])
    learnt = rng.uniform(0, 0.6)
    rows = []
    for question in questions.to_dict("records"):
        if not (question[f"{axis}_test"] if axis else question["modality_test"] or question["task_test"]):
            continue
        own = axis is not None and question[CELLS[axis]] == checkpoint
        knows, readable = (learnt, 0.98) if own else (0.3 * learnt, 0.93) if axis else (0.05, 0.7)
        said = question["right"] if rng.random() < knows else int(rng.integers(len(question["options"])))
        answer = LETTERS[said] if rng.random() < readable else None
        gold = LETTERS[question["right"]]
        rows.append(
            {
                "checkpoint": checkpoint,
                **{name: question[name] for name in (*SLICES, "modality_test", "task_test", "image")},
                "n_options": len(question["options"]),
                "gold": gold,
                "output": format_solution(answer) if answer else "<answer> the answer is",
                "answer": answer,
                "correct": answer == gold,
                "completion_tokens": 8 if answer else 12,
            }
        )
    return pd.DataFrame(rows)


def write_predictions(path: Path, predictions: pd.DataFrame) -> None:
    """Write predictions as stage evaluate does, provenance and all; columns that are missing as null, as without ablations."""
    predictions = predictions.reindex(columns=SCHEMA.names)
    table = pa.Table.from_pandas(predictions, schema=SCHEMA, preserve_index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(PROVENANCE)}), path)


def make_training_log(checkpoint: str, steps: int = 24) -> pd.DataFrame:
    """Rewards that rise and level off, a KL that grows, completions that settle at the length of an answer."""
    rng = np.random.default_rng([3, sorted(CHECKPOINTS).index(checkpoint)])
    done = np.arange(1, steps + 1) / steps
    accuracy = np.clip(0.3 + rng.uniform(0.15, 0.5) * (1 - np.exp(-3 * done)) + rng.normal(0, 0.05, steps), 0, 1)
    form = np.clip(0.7 + 0.3 * (1 - np.exp(-6 * done)) + rng.normal(0, 0.02, steps), 0, 1)
    curves = {
        "reward": accuracy + form,
        "reward_accuracy": accuracy,
        "reward_format": form,
        "kl": rng.uniform(0.1, 0.4) * done**1.5 + np.abs(rng.normal(0, 0.01, steps)),
        "completion_length": 8 + 2.5 * np.exp(-5 * done) + rng.uniform(0, 0.2, steps),
    }
    assert curves.keys() == CURVES.keys()
    rest = {
        "loss": 0.01 * done,
        "reward_std": 0.5 * (1 - 0.5 * done),
        "frac_reward_zero_std": np.clip(0.1 + 0.5 * done + rng.normal(0, 0.08, steps), 0, 1),
        "entropy": 1 - 0.6 * done,
        "grad_norm": 1 + rng.uniform(0, 0.3, steps),
        "learning_rate": 3e-4 * (1 - done),
    }
    return pd.DataFrame({"step": np.arange(1, steps + 1), **curves, **rest}).round(6)


def _split_record(question: dict[Any, Any]) -> dict[str, Any]:
    return {
        "image": question["image"],
        "problem": format_problem("What does this image show?", question["options"]),
        "solution": format_solution(LETTERS[question["right"]]),
        **{name: question[name] for name in SLICES},
    }


def _write_quarantine(root: Path, questions: pd.DataFrame) -> None:
    refused = [
        Row("QA_information/Open-access/Phantom ct.json#17", "{'modality': 'CT'}", "no key 'modality_type'"),
        Row("QA_information/Open-access/Phantom mri.json#4", "Kidney", "gt_answer is none of the options"),
        Row("QA_information/Open-access/Phantom oct.json#9", "Iris", "gt_answer is none of the options"),
    ]
    path = root / layout.QUARANTINE / "download.json"
    write_quarantine(path, "download", len(questions) + len(refused), len(questions), refused, PROVENANCE)
    for slug in MODALITIES:
        broken = [Row(f"Images/Phantom {slug}/0003.png", "217 bytes", "image cannot be decoded")] * (slug in ("ct", "fundus"))
        kept = int((questions["modality"] == slug).sum())
        path = root / layout.QUARANTINE / "resize" / f"{slug}.json"
        write_quarantine(path, f"resize@{slug}", kept + len(broken), kept, broken, PROVENANCE)
