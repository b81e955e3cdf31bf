"""A finished pipeline for reports, made up but plausible: predictions, logs, splits, quarantine.

The same arguments give the same files. Questions, options and outputs look like those of the
embedded sample; the accuracies are drawn, not earned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.core import layout
from stages.core.outputs import write_json
from stages.core.yaml_files import dump_yaml, load_yaml
from stages.corpus.dataset.problems import LETTERS, format_problem, format_solution
from stages.corpus.dataset.split_files import DRAWN
from stages.corpus.quarantine.ledger import RecordLocation, Row, write_quarantine
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.splitting.data_tests import CORPUS_TESTS, TESTS, Result, Results, write_results
from stages.corpus.splitting.leaks import as_json, count_leaks
from stages.generation.variants import shuffled_images
from stages.predictions.schema import ABLATIONS, SCHEMA
from stages.reporting.figures import CURVES
from stages.scoring.blind_baseline import RULES, BlindBaseline, find_blind_baseline
from stages.scoring.blind_baseline import as_json as blind_baseline_as_json
from stages.scoring.predictions import add_answers
from stages.scoring.prior import fit_prior, pool
from stages.scoring.questions import Question
from stages.scoring.tables import CELLS
from tests.omnimedvqa import AXES, MODALITIES, QUESTION_TYPES

REPOSITORY = Path(__file__).parents[1]
CHECKPOINTS = {slug: axis for axis, slugs in AXES.items() for slug in slugs}
SLICES = ("question_id", "dataset", "modality", "question_type")
WORDS = ("Cyst", "Nodule", "Chest", "Severe", "Spleen", "Macula", "Left", "Two")
PROVENANCE: dict[str, Any] = {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "corpus": "md5:5d41402abc4b2a76b9719d911017c592",
    "params": {
        "splits.kind": "grouped",
        "evaluate": {"batch_size": 64, "max_new_tokens": 12},
        "prompt": {"style": "no-think"},
    },
    "versions": {"python": "3.11.0", "numpy": "2.4.6"},
}


def write_project(
    root: Path,
    *,
    per_cell: int = 20,
    dataset: str = "Phantom",
    empty: tuple[str, str] | None = None,
    kind: str = "grouped",
    images: bool = False,
    checkpoints: Sequence[str] = tuple(CHECKPOINTS),
) -> None:
    """Write all that stage report reads under `root`, with few bootstrap resamples.

    There are `per_cell` questions for each modality and question type, but none in `empty`; the
    data set of modality x is called "<dataset> x". With `images` the images are there, too. Only
    `checkpoints`, in the order of CHECKPOINTS, have been trained and are in params.yaml.
    """
    text = (REPOSITORY / layout.PARAMS).read_text(encoding="utf-8")
    text = text.replace("kind: grouped", f"kind: {kind}").replace(
        "bootstrap_samples: 10000", "bootstrap_samples: 1000"
    )
    if len(checkpoints) < len(CHECKPOINTS):
        tree = load_yaml(text, layout.PARAMS)
        for group, names in (("checkpoints", checkpoints), ("evaluations", ("base", *checkpoints))):
            tree[group] = {name: tree[group][name] for name in names}
        text = dump_yaml(tree)
    (root / layout.PARAMS).write_text(text, encoding="utf-8")
    drawn = {
        each: make_questions(per_cell=per_cell, dataset=dataset, empty=empty, kind=each)
        for each in dict.fromkeys((*DRAWN, kind))
    }
    write_json(
        root / layout.LEAKS,
        {each: _write_splits(root, frame, each) for each, frame in drawn.items()}
        | {"patients": {dataset: {"images": 400, "known": 0}, "Ward": {"images": 9, "known": 8}}},
    )
    questions = drawn[kind]
    for name in ["base", *checkpoints]:
        facts = PROVENANCE | {"params": {**PROVENANCE["params"], "splits.kind": kind}}
        write_predictions(root / layout.predictions(name), make_predictions(questions, name), facts)
    for name in checkpoints:
        path = root / layout.training_log(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        make_training_log(name).to_csv(path, index=False)
    for name in ["base", *checkpoints]:
        write_json(root / layout.training_provenance(name), PROVENANCE)
    _write_quarantine(root, questions)
    write_results(root / layout.DATA_TESTS, make_data_tests(), PROVENANCE)
    for name in sorted(questions["image"].unique()) if images else ():
        _draw_image(root / name)
    for (axis, slug), blind_baseline in make_blind_baselines(questions, kind).items():
        write_json(
            root / layout.prior(axis, slug),
            blind_baseline_as_json(blind_baseline) | {"provenance": PROVENANCE},
        )


def make_questions(
    *,
    per_cell: int = 20,
    dataset: str = "Phantom",
    empty: tuple[str, str] | None = None,
    kind: str = "grouped",
) -> pd.DataFrame:
    """Questions of every modality and type, about two per image, a fifth of them in test."""
    rng = np.random.default_rng(1)
    rows: list[tuple[Any, ...]] = []
    for modality in MODALITIES:
        for asked in QUESTION_TYPES:
            for _ in range(0 if (modality, asked) == empty else per_cell):
                options = [str(word) for word in rng.permutation(WORDS)[: int(rng.integers(2, 5))]]
                image = f"data/images/{modality}/{rng.integers(per_cell * 3):04d}.png"
                number = len(rows)
                right = int(rng.integers(len(options)))
                rows.append(
                    (
                        f"{dataset}_{number:05d}",
                        f"{dataset} {modality}",
                        modality,
                        asked,
                        image,
                        options,
                        right,
                    )
                )
    frame = pd.DataFrame(
        rows,
        columns=[
            "question_id",
            "dataset",
            "modality",
            "question_type",
            "image",
            "options",
            "right",
        ],
    )
    images = sorted(frame["image"].unique())
    tested = frame["image"].isin(
        [
            image
            for image, number in zip(images, rng.random(len(images)), strict=True)
            if number < 0.2
        ]
    )
    for axis in AXES:
        frame[f"{axis}_test"] = tested if kind == "grouped" else rng.random(len(frame)) < 0.2
    return frame


def make_predictions(
    questions: pd.DataFrame, checkpoint: str, *, ablations: bool = True, cell: str | None = None
) -> pd.DataFrame:
    """Scored completions of one checkpoint: the base guesses and loses the form, others less so.

    With `ablations` also without the image, where it knows half as much. A checkpoint that is not
    called after what it was trained on (`cell`) is none of the thirteen.
    """
    cell = cell or checkpoint
    axis = CHECKPOINTS.get(cell)
    rng = np.random.default_rng(
        [2, sorted(["base", *CHECKPOINTS]).index(cell), *checkpoint.removesuffix(cell).encode()]
    )
    learnt = rng.uniform(0, 0.6)
    rows = []
    for question in questions.to_dict("records"):
        if not (
            question[f"{axis}_test"] if axis else question["modality_test"] or question["task_test"]
        ):
            continue
        own = axis is not None and question[CELLS[axis]] == cell
        knows, readable = (0.3 * learnt, 0.93) if axis else (0.05, 0.7)
        if own:
            knows, readable = learnt, 0.98
        said = (
            question["right"]
            if rng.random() < knows
            else int(rng.integers(len(question["options"])))
        )
        answer = LETTERS[said] if rng.random() < readable else None
        rows.append(
            {
                "checkpoint": checkpoint,
                **{
                    name: question[name]
                    for name in (*SLICES, "modality_test", "task_test", "image")
                },
                "options": question["options"],
                "gold": LETTERS[question["right"]],
                "output": format_solution(answer) if answer else "<answer> the answer is",
                "completion_tokens": 8 if answer else 12,
            }
        )
    written = _with_ablations(pd.DataFrame(rows), 0.5 * learnt, ablations)
    return add_answers(
        pa.Table.from_pandas(written, schema=SCHEMA, preserve_index=False)
    ).to_pandas()


def _with_ablations(rows: pd.DataFrame, knows: float, done: bool) -> pd.DataFrame:
    """Add answers to a black and an exchanged image; columns without values unless `done`."""
    rng = np.random.default_rng(7)
    partner = shuffled_images(rows[["image", "modality"]].to_dict("records"))  # type: ignore[arg-type]
    for variant in ABLATIONS:
        letters = [LETTERS[int(rng.integers(len(options)))] for options in rows["options"]]
        guesses = [
            gold if rng.random() < knows else letter
            for gold, letter in zip(rows["gold"], letters, strict=True)
        ]
        answers = pd.Series(
            [letter if rng.random() < 0.95 else None for letter in guesses],
            index=rows.index,
            dtype=object,
        )
        images = (
            rows["image"].map(lambda image: partner.get((image,), (None,))[0])
            if variant == "shuffled"
            else pd.Series("", index=rows.index)
        )
        there = images.notna() & done
        rows[f"{variant}_image"] = images.where(there, None)
        rows[f"{variant}_output"] = answers.map(
            lambda said: format_solution(said) if said else "<answer>"
        ).where(there, None)
        rows[f"{variant}_completion_tokens"] = pd.Series(8, index=rows.index, dtype="Int32").where(
            there
        )
    return rows


def make_data_tests() -> Results:
    """The results of a corpus of small images: one warning, all else passed."""
    tests = {
        name: Result(
            name, "warning" if name in CORPUS_TESTS else "error", "passed", 0.5, 0.0, 100, 0, "", ()
        )
        for name in TESTS
    }
    examples = ("data/images/ct/0001.png: 96 x 96",)
    small = replace(
        tests["upscaled_images"], outcome="failed", value=0.75, found=75, examples=examples
    )
    found = tuple((tests | {small.test: small}).values())
    light = {name: {"mean": 80.5, "std": 12.25} for name in ("brightness", "contrast")}
    return Results(
        found,
        {
            slug: {"questions": 100, "images": 50, "median_side": 96.0, **light, "upscaled": 0.75}
            for slug in MODALITIES
        },
    )


def make_blind_baselines(
    questions: pd.DataFrame, kind: str = "grouped"
) -> dict[tuple[str, str], BlindBaseline]:
    """The blind baselines of the splits, as stage prior finds them."""
    blind_baselines = {}
    for axis, column in CELLS.items():
        sides = {}
        for slug in AXES[axis]:
            rows = questions[questions[column] == slug]
            asked = [
                Question(row["question_id"], tuple(row["options"]), row["right"])
                for row in rows.to_dict("records")
            ]
            test = rows[f"{axis}_test"].tolist()
            sides[slug] = [
                [each for each, tested in zip(asked, test, strict=True) if tested == side]
                for side in (False, True)
            ]
        own = {
            slug: {name: fit_prior(train, exact=name == "as_written") for name in RULES}
            for slug, (train, _) in sides.items()
        }
        pooled = {name: pool([priors[name] for priors in own.values()]) for name in RULES}
        for slug, (train, tested) in sides.items():
            blind_baselines[axis, slug] = find_blind_baseline(
                axis, slug, kind, train, tested, own[slug], pooled
            )
    return blind_baselines


def write_predictions(
    path: Path, predictions: pd.DataFrame, provenance: dict[str, Any] = PROVENANCE
) -> None:
    """Write predictions as stage evaluate does, provenance and all."""
    table = pa.Table.from_pandas(predictions, schema=SCHEMA, preserve_index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(provenance)}), path)


def make_training_log(checkpoint: str, steps: int = 24) -> pd.DataFrame:
    """Rewards that rise and level off, a growing KL, completions that shrink to an answer."""
    rng = np.random.default_rng([3, sorted(CHECKPOINTS).index(checkpoint)])
    done = np.arange(1, steps + 1) / steps
    accuracy = np.clip(
        0.3 + rng.uniform(0.15, 0.5) * (1 - np.exp(-3 * done)) + rng.normal(0, 0.05, steps), 0, 1
    )
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
        "truncated": 0.05 * (1 - done),
        "reward_std": 0.5 * (1 - 0.5 * done),
        "frac_reward_zero_std": np.clip(0.1 + 0.5 * done + rng.normal(0, 0.08, steps), 0, 1),
        "entropy": 1 - 0.6 * done,
        "grad_norm": 1 + rng.uniform(0, 0.3, steps),
        "learning_rate": 3e-4 * (1 - done),
    }
    return pd.DataFrame({"step": np.arange(1, steps + 1), **curves, **rest}).round(6)


def _write_splits(root: Path, questions: pd.DataFrame, kind: str) -> dict[str, Any]:
    """Write the split files of one kind; what leaks in them."""
    draw: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {}
    for axis, column in CELLS.items():
        draw[axis] = {}
        for slug in AXES[axis]:
            rows = questions[questions[column] == slug]
            test = rows[f"{axis}_test"]
            train_items, test_items = (
                [_split_record(row) for row in rows[chosen].to_dict("records")]
                for chosen in (~test, test)
            )
            write_json(root / layout.split(axis, slug, "train", kind), train_items)
            write_json(root / layout.split(axis, slug, "test", kind), test_items)
            draw[axis][slug] = train_items, test_items
    return as_json(count_leaks([draw], {image: image for image in questions["image"]}))


def _split_record(question: dict[Any, Any]) -> dict[str, Any]:
    return {
        "image": question["image"],
        "problem": format_problem("What does this image show?", question["options"]),
        "solution": format_solution(LETTERS[question["right"]]),
        "options": list(question["options"]),
        **{name: question[name] for name in SLICES},
    }


def _draw_image(path: Path) -> None:
    """A bright disc somewhere on a dark ground."""
    rng = np.random.default_rng(list(path.name.encode()))
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    disc = (x - rng.integers(20, 76)) ** 2 + (y - rng.integers(20, 76)) ** 2 < rng.integers(
        8, 20
    ) ** 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((40 + 150 * disc + rng.integers(0, 20, disc.shape)).astype(np.uint8)).save(path)


def _write_quarantine(root: Path, questions: pd.DataFrame) -> None:
    folder = "QA_information/Open-access/Phantom"
    refused = [
        Row(
            RecordLocation(f"{folder} ct.json", 17),
            "modality_type",
            "modality_type is missing",
            Reason.FIELD_MISSING,
            "Phantom ct",
        ),
        *(
            Row(
                RecordLocation(f"{folder} {slug}.json", record, f"{slug}-{record}"),
                what,
                f"gt_answer is none of the options ['Left', '{slug}']",
                Reason.ANSWER_NOT_OFFERED,
                f"Phantom {slug}",
                MODALITIES[slug],
            )
            for slug, record, what in (
                ("mri", 4, "Kidney"),
                ("mri", 5, "Spleen"),
                ("oct", 9, "Iris"),
            )
        ),
    ]
    path = root / layout.QUARANTINE / "download.parquet"
    write_quarantine(
        path, "download", len(questions) + len(refused), questions["dataset"], refused, PROVENANCE
    )
    for slug in MODALITIES:
        place = RecordLocation(f"data/corpus/{slug}/records.jsonl", None, "3", 4)
        why = "the image cannot be used: the file is empty"
        row = Row(
            place,
            f"Images/Phantom {slug}/0003.png",
            why,
            Reason.IMAGE_EMPTY,
            f"Phantom {slug}",
            MODALITIES[slug],
        )
        broken = [row] * (slug in ("ct", "fundus"))
        kept = questions.loc[questions["modality"] == slug, "dataset"]
        path = root / layout.QUARANTINE / "resize" / f"{slug}.parquet"
        write_quarantine(path, f"resize@{slug}", len(kept) + len(broken), kept, broken, PROVENANCE)
