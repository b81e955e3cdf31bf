"""Stage `evaluate@<checkpoint>`: greedy completions for the test questions of its axis.

    python -m stages.evaluate ct        the checkpoint on the test splits of all modalities
    python -m stages.evaluate base      the base on the test splits of both axes

Answers and accuracies are not computed here but derived from the rows by stage report. Completions
are stored in .scratch/evaluate as they come, from which a killed run resumes. Several GPUs share
the questions, one process per GPU; MED_R1_PROCESSES sets another number of processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.core import layout
from stages.core.cli import run_stage, stage_parser
from stages.core.code_version import stage_code
from stages.core.distributed.devices import check_gpus
from stages.core.distributed.ranks import check_still_wanted, run_ranks, wanted_processes
from stages.core.errors import InputError
from stages.core.iteration.progress import progress_reporter
from stages.core.outputs import atomic_file
from stages.core.params import Params, load_params
from stages.core.provenance import collect_provenance
from stages.core.services.tracking import check_tracking, tracked
from stages.corpus.dataset.image_store import identity
from stages.corpus.dataset.problems import parse_solution
from stages.corpus.dataset.split_files import read_split
from stages.policy.fingerprint import files_hash, fingerprint
from stages.policy.weights import weight_hashes
from stages.predictions.schema import SCHEMA
from stages.prompts.styles import prompt_text
from stages.taxonomy import AXES

if TYPE_CHECKING:  # these import torch
    from stages.generation.answer_store import AnswerStore
    from stages.generation.generate import Completion, Key, Question


def main() -> None:
    """Evaluate one policy and write predictions/<checkpoint>.parquet."""
    arguments = _parse_arguments()
    name = arguments.checkpoint
    params = load_params()
    evaluation = params.require_evaluation(name)
    items = read_items(evaluation.axis, params.splits.kind)
    folder = layout.model(name)
    if not folder.is_dir():
        stage = "base" if name == "base" else f"train@{name}"
        raise InputError(f"{folder} is missing: run `dvc repro {stage}`")
    from stages.generation.answer_store import AnswerStore
    from stages.generation.generate import cut_windows  # imports torch
    from stages.policy.loading import check_policy_files

    questions = _questions(items, params)
    windows = cut_windows(questions, params.evaluate.batch_size)
    if arguments.rank is not None:
        processes = arguments.world_size
        own_windows = windows[arguments.rank :: processes]
        store = AnswerStore(arguments.answers)
        for _ in _answer(folder, params, questions, own_windows, store, processes):
            check_still_wanted()
        return
    check_tracking(params.tracking)
    check_policy_files(folder, f"models/{name}")
    provenance = collect_provenance(
        {
            "splits.kind": params.splits.kind,
            "base": params.base,
            "prompt": params.prompt,
            "evaluate": params.evaluate,
        }
    )
    provenance["weights"] = weight_hashes(folder)
    scratch = layout.SCRATCH / "evaluate" / name
    store = AnswerStore(scratch / _fingerprint(folder, provenance, items, questions, windows))
    store.make_folder()
    with tracked(params, "evaluate", name, provenance, identity=store.folder.name) as run:
        run.artifact(name, "model", partial(weight_hashes, folder))
        _answer_all(name, folder, params, questions, windows, store, wanted_processes())
        completions, provenance["batch_sizes"] = store.read()
        rows = [
            _row(name, item, completions, index, question)
            for index, (item, question) in enumerate(zip(items, questions, strict=True))
        ]
        rows.sort(key=lambda row: row["question_id"])
        schema = SCHEMA.with_metadata({"provenance": json.dumps(provenance)})
        with atomic_file(layout.predictions(name)) as path:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
        run.summarise(
            {"test/completion_tokens": sum(row["completion_tokens"] for row in rows) / len(rows)}
        )
        run.artifact(
            f"{name}-predictions",
            "predictions",
            lambda: {str(layout.predictions(name)): files_hash([layout.predictions(name)])},
        )
    shutil.rmtree(scratch)
    print(f"{name}: {len(rows)} questions answered -> {layout.predictions(name)}")


def _parse_arguments() -> argparse.Namespace:
    parser = stage_parser("evaluate", __doc__)
    parser.add_argument("checkpoint", help="base, or a key of checkpoints in params.yaml")
    # For the processes that this stage starts: a rank stores its answers in the folder ANSWERS and
    # writes no predictions.
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--world-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _questions(items: Sequence[Mapping[str, Any]], params: Params) -> list[Question]:
    """The prompt of each item, and its image per variant."""
    from stages.generation.generate import BLANK, Question

    ablations = params.evaluate.ablations
    partner = shuffled_images(items) if ablations else {}
    questions = []
    for item in items:
        images = {"real": item["image"]}
        if ablations:
            images["blank"] = BLANK
        if item["image"] in partner:
            images["shuffled"] = partner[item["image"]]
        prompt = prompt_text(item["problem"], params.prompt.style, "evaluate")
        questions.append(Question(prompt, images))
    return questions


def _answer_all(
    name: str,
    folder: Path,
    params: Params,
    questions: Sequence[Question],
    windows: Sequence[range],
    store: AnswerStore,
    processes: int,
) -> None:
    """Answer all questions, in this process or several; stored answers are not computed again."""
    total = sum(len(question.images) for question in questions)
    completions, _ = store.read()
    if completions:
        print(
            f"{name}: resuming after {len(completions)} of {total} answers (in {store.folder})",
            file=sys.stderr,
        )
    if len(completions) == total:
        return
    report = _progress_reporter(name, total, len(completions))
    ranks = min(processes, len(windows))
    if ranks > 1:
        command = ["stages.evaluate", name, "--answers", str(store.folder)]
        run_ranks(command, ranks, lambda: report(store.count()))
    else:
        for count in _answer(folder, params, questions, windows, store, ranks):
            report(count)


def _progress_reporter(name: str, total: int, initial: int) -> Callable[[int], None]:
    """A function that reports the number of answers, on a bar or in lines."""
    bar = tqdm(
        desc=name, total=total, initial=initial, unit="answer", disable=not sys.stderr.isatty()
    )
    report_line = progress_reporter(name, total, "answer", done=initial)
    start = time.monotonic()

    def report(count: int) -> None:
        bar.update(count - bar.n)
        if bar.disable:
            rate = (count - initial) / max(time.monotonic() - start, 1e-9)
            report_line(count, f"{rate:.1f} a second, ")

    return report


def _answer(
    folder: Path,
    params: Params,
    questions: Sequence[Question],
    windows: Sequence[range],
    store: AnswerStore,
    processes: int,
) -> Iterator[int]:
    """Answer the remaining questions of `windows`; yield the number of answers after each batch."""
    import torch

    from stages.generation.batch_size import BatchSize
    from stages.generation.generate import answer_greedily
    from stages.policy.loading import load_policy, load_processor

    dtype = params.evaluate.dtype or params.base.dtype
    # only in processes that compute: the parent of ranks must not use GPU memory
    check_gpus(f"evaluate.dtype {dtype}" if dtype == "bfloat16" else None)
    torch.set_num_threads(params.base.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    completed, _ = store.read()
    count = len(completed)
    # A GPU answers faster than one thread opens images; on a CPU, threads would slow it down.
    loader_threads = 0
    if device.type == "cuda":
        loader_threads = max((os.cpu_count() or 1) // processes, 1)
    try:
        for answers in answer_greedily(
            load_policy(folder, dtype=dtype, attention=params.base.attention).to(device),
            load_processor(folder),
            questions,
            windows=windows,
            batch_size=BatchSize(params.evaluate.batch_size, device),
            max_new_tokens=params.evaluate.max_new_tokens,
            completed=completed.keys(),
            loader_threads=loader_threads,
        ):
            store.add(answers)
            count += len(answers.completions)
            yield count
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of GPU memory ({str(error).splitlines()[0]}): lower evaluate.batch_size (now"
            f" {params.evaluate.batch_size}), or free the GPU; `nvidia-smi` lists its processes."
            " Re-run the same command to resume from the stored answers"
        ) from error


def _row(
    name: str,
    item: Mapping[str, Any],
    completions: Mapping[Key, Completion],
    index: int,
    question: Question,
) -> dict[str, Any]:
    """The prediction row of one question; `index` is its position among the questions."""
    row = {"checkpoint": name, **{field: item[field] for field in SCHEMA.names if field in item}}
    row["gold"] = parse_solution(item["solution"])
    for variant, path in question.images.items():
        prefix = "" if variant == "real" else f"{variant}_"
        completion = completions[index, variant]
        row |= {
            f"{prefix}image": path,
            f"{prefix}output": completion.text,
            f"{prefix}completion_tokens": len(completion.ids),
        }
    return row


def _fingerprint(
    folder: Path,
    provenance: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    windows: Sequence[range],
) -> str:
    """Fingerprint of everything that determines the answers; see docs/architecture.md."""
    import torch

    paths = chain.from_iterable(question.images.values() for question in questions)
    images = sorted(set(filter(None, paths)))  # without the empty path of the blank image
    contents = [
        [dict(item), question.text, dict(question.images)]
        for item, question in zip(items, questions, strict=True)
    ]
    text = json.dumps(contents, sort_keys=True)
    suffixes = (".json", ".safetensors", ".jinja", ".txt")
    weights = [path for path in folder.iterdir() if path.is_file() and path.suffix in suffixes]
    return fingerprint(
        {name: provenance[name] for name in ("params", "versions")}
        | {
            "checkpoint": files_hash(weights),
            "questions": hashlib.sha256(text.encode()).hexdigest(),
            "images": hashlib.sha256("\n".join(map(identity, images)).encode()).hexdigest(),
            "code": files_hash(stage_code("evaluate")),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "windows": [len(window) for window in windows],
        }
    )


def read_items(axis: str, kind: str) -> list[dict[str, Any]]:
    """Distinct test questions of an axis ("modality", "task", "all") in one kind of split.

    Adds to each question the flags `<axis>_test`. Questions about one image are adjacent, next to
    those about its partner in `exchange`.
    """
    test_ids: dict[str, set[str]] = {}
    by_id: dict[str, dict[str, Any]] = {}
    for name, slugs in AXES.items():
        splits = [read_split(layout.split(name, slug, "test", kind)) for slug in slugs]
        items = list(chain.from_iterable(splits))
        test_ids[name] = {item["question_id"] for item in items}
        if axis in (name, "all"):
            by_id |= {item["question_id"]: item for item in items}
    for question_id, item in by_id.items():
        item |= {f"{name}_test": question_id in ids for name, ids in test_ids.items()}
    return sorted(
        by_id.values(),
        key=lambda item: (item["modality"], _draw(item["image"]), item["question_id"]),
    )


def shuffled_images(questions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Image -> another image of its modality: the next one in a fixed random cycle.

    A modality with a single image has no entry.
    """
    partner: dict[str, str] = {}
    for modality in sorted({item["modality"] for item in questions}):
        images = sorted(
            {item["image"] for item in questions if item["modality"] == modality}, key=_draw
        )
        if len(images) > 1:
            partner |= dict(zip(images, images[1:] + images[:1], strict=True))
    return partner


def _draw(name: str) -> bytes:
    """Sort key: a hash, so that the order is unrelated to names and machine-independent."""
    return hashlib.sha256(name.encode()).digest()


if __name__ == "__main__":
    run_stage(main)
