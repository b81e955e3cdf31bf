"""Stage `evaluate@<checkpoint>`: greedy completions for the test questions of its axis.

    python -m stages.evaluate ct        the checkpoint on the test splits of all modalities
    python -m stages.evaluate base      the base on the test splits of both axes

No answer is extracted and no number computed here: both are derived from the rows (stage report).
Completions are stored as they come in .scratch/evaluate, from which a killed run resumes.
Several GPUs share the questions, a process each; MED_R1_PROCESSES says how many processes where
that is to be another number.
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
from stages.core.cli import run_stage
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
from stages.policy.weights import hashes
from stages.predictions.schema import SCHEMA
from stages.prompts.styles import prompt_text
from stages.taxonomy import AXES

if TYPE_CHECKING:  # they import torch
    from stages.generation.answer_store import AnswerStore
    from stages.generation.generate import Completion, Key, Question


def main() -> None:
    """Test one policy and write predictions/<checkpoint>.parquet."""
    arguments = argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("checkpoint", help="base, or a key of checkpoints in params.yaml")
    # of a process that this stage starts, which keeps its answers in the folder and writes no
    # predictions
    arguments.add_argument("--share", help=argparse.SUPPRESS)
    arguments.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    name, params = options.checkpoint, load_params()
    evaluation = params.require_evaluation(name)
    questions = test_questions(evaluation.axis, params.splits.kind)
    folder, stage = layout.model(name), "base" if name == "base" else f"train@{name}"
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: run `dvc repro {stage}`")
    provenance = collect_provenance(
        {
            "splits.kind": params.splits.kind,
            "base": params.base,
            "prompt": params.prompt,
            "evaluate": params.evaluate,
        }
    )
    provenance["weights"] = hashes(folder)
    if not options.share:
        check_tracking(params.tracking)

    from stages.generation.answer_store import AnswerStore
    from stages.generation.generate import cut_windows  # imports torch
    from stages.policy.loading import check_policy_files

    asked = _ask(questions, params)
    processes = int(options.share.partition("/")[2]) if options.share else wanted_processes()
    windows = cut_windows(asked, params.evaluate.batch_size)
    if options.share:
        share = int(options.share.partition("/")[0])
        for _ in _answer(
            folder,
            params,
            asked,
            windows[share::processes],
            AnswerStore(options.answers),
            processes,
        ):
            check_still_wanted()
        return
    check_policy_files(folder, f"models/{name}")
    scratch = layout.SCRATCH / "evaluate" / name
    store = AnswerStore(scratch / _fingerprint(folder, provenance, questions, asked, windows))
    store.make_folder()
    with tracked(params, "evaluate", name, provenance, identity=store.folder.name) as run:
        run.artifact(name, "model", partial(hashes, folder))
        _answer_all(name, folder, params, asked, windows, store, processes)
        completions, provenance["batch_sizes"] = store.read()
        rows = [
            _row(name, item, completions, place, question)
            for place, (item, question) in enumerate(zip(questions, asked, strict=True))
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


def _ask(questions: Sequence[Mapping[str, Any]], params: Params) -> list[Question]:
    """Each question as it is asked: its words, and the images it is asked of."""
    from stages.generation.generate import BLANK, Question

    partner = exchange(questions) if params.evaluate.ablations else {}
    asked = []
    for item in questions:
        images = {"real": item["image"]} | ({"blank": BLANK} if params.evaluate.ablations else {})
        images |= {"shuffled": partner[item["image"]]} if item["image"] in partner else {}
        asked.append(
            Question(prompt_text(item["problem"], params.prompt.style, "evaluate"), images)
        )
    return asked


def _answer_all(
    name: str,
    folder: Path,
    params: Params,
    asked: Sequence[Question],
    windows: Sequence[range],
    store: AnswerStore,
    processes: int,
) -> None:
    """Answer all questions, in this process or several; stored answers are not computed again."""
    total, (completions, _) = sum(len(each.images) for each in asked), store.read()
    if completions:
        print(
            f"{name}: resuming after {len(completions)} of {total} answers, kept in {store.folder}",
            file=sys.stderr,
        )
    if len(completions) == total:
        return
    report = _progress_reporter(name, total, len(completions))
    if (shares := min(processes, len(windows))) > 1:
        run_ranks(
            ["stages.evaluate", name, "--answers", str(store.folder)],
            shares,
            lambda: report(store.count()),
        )
    else:
        for count in _answer(folder, params, asked, windows, store, shares):
            report(count)


def _progress_reporter(name: str, total: int, done: int) -> Callable[[int], None]:
    """A function that shows how many answers there are."""
    bar = tqdm(desc=name, total=total, initial=done, unit="answer", disable=not sys.stderr.isatty())
    line, start = progress_reporter(name, total, "answer", done=done), time.monotonic()

    def report(count: int) -> None:
        bar.update(count - bar.n)
        if bar.disable:
            line(count, f"{(count - done) / max(time.monotonic() - start, 1e-9):.1f} a second, ")

    return report


def _answer(
    folder: Path,
    params: Params,
    asked: Sequence[Question],
    windows: Sequence[range],
    store: AnswerStore,
    processes: int,
) -> Iterator[int]:
    """Answer what remains of some windows; yield the number of stored answers per batch."""
    import torch

    from stages.generation.batch_size import BatchSize
    from stages.generation.generate import answer_greedily
    from stages.policy.loading import load_policy, load_processor

    dtype = params.evaluate.dtype or params.base.dtype
    # by those that compute: one that shares the work out takes no memory of a GPU
    check_gpus(f"evaluate.dtype {dtype}" if dtype == "bfloat16" else None)
    torch.set_num_threads(params.base.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    done, _ = store.read()
    count = len(done)
    try:
        for answers in answer_greedily(
            load_policy(folder, dtype=dtype, attention=params.base.attention).to(device),
            load_processor(folder),
            asked,
            windows=windows,
            batch_size=BatchSize(params.evaluate.batch_size, device),
            max_new_tokens=params.evaluate.max_new_tokens,
            completed=done.keys(),
            # a GPU answers faster than one thread opens images; on a CPU they would be in each
            # other's way
            loader_threads=max((os.cpu_count() or 1) // processes, 1)
            if device.type == "cuda"
            else 0,
        ):
            store.add(answers)
            count += len(answers.completions)
            yield count
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of GPU memory ({str(error).splitlines()[0]}): set evaluate.batch_size to a"
            f" smaller number (now {params.evaluate.batch_size}), or free the GPU; `nvidia-smi`"
            " shows what else is on it. Re-run the same command to resume from the stored answers"
        ) from error


def _row(
    name: str,
    item: Mapping[str, Any],
    completions: Mapping[Key, Completion],
    place: int,
    question: Question,
) -> dict[str, Any]:
    """The row of one question."""
    row = {"checkpoint": name, **{field: item[field] for field in SCHEMA.names if field in item}}
    row["gold"] = parse_solution(item["solution"])
    for variant, path in question.images.items():
        prefix = "" if variant == "real" else f"{variant}_"
        completion = completions[place, variant]
        row |= {
            f"{prefix}image": path,
            f"{prefix}output": completion.text,
            f"{prefix}completion_tokens": len(completion.ids),
        }
    return row


def _fingerprint(
    folder: Path,
    provenance: Mapping[str, Any],
    questions: Sequence[Mapping[str, Any]],
    asked: Sequence[Question],
    windows: Sequence[range],
) -> str:
    """Fingerprint of the answers.

    Covers checkpoint, questions, images, settings, code, versions, device and windows.
    """
    import torch

    images = sorted(set(filter(None, chain.from_iterable(each.images.values() for each in asked))))
    text = json.dumps(
        [
            [dict(item), each.words, dict(each.images)]
            for item, each in zip(questions, asked, strict=True)
        ],
        sort_keys=True,
    )
    return fingerprint(
        {name: provenance[name] for name in ("params", "versions")}
        | {
            "checkpoint": files_hash(
                [
                    path
                    for path in folder.iterdir()
                    if path.is_file() and path.suffix in (".json", ".safetensors", ".jinja", ".txt")
                ]
            ),
            "questions": hashlib.sha256(text.encode()).hexdigest(),
            "images": hashlib.sha256("\n".join(map(identity, images)).encode()).hexdigest(),
            "code": files_hash(stage_code("evaluate")),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "windows": [len(window) for window in windows],
        }
    )


def test_questions(axis: str, kind: str) -> list[dict[str, Any]]:
    """Distinct test questions of an axis ("modality", "task", "all") in one kind of split.

    Each has the axes it is a test question of.

    In an order in which the questions of one image stand together, next to those of the one it is
    exchanged with.
    """
    tests: dict[str, set[str]] = {}
    by_id: dict[str, dict[str, Any]] = {}
    for each, slugs in AXES.items():
        splits = [read_split(layout.split(each, slug, "test", kind)) for slug in slugs]
        items = list(chain.from_iterable(splits))
        tests[each] = {item["question_id"] for item in items}
        if axis in (each, "all"):
            by_id |= {item["question_id"]: item for item in items}
    for name, item in by_id.items():
        item |= {f"{each}_test": name in members for each, members in tests.items()}
    return sorted(
        by_id.values(),
        key=lambda item: (item["modality"], _draw(item["image"]), item["question_id"]),
    )


def exchange(questions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Image -> another image of its modality: the next one in a fixed random cycle.

    None stays with itself, and a modality with one image has none to exchange.
    """
    partner: dict[str, str] = {}
    for modality in sorted({item["modality"] for item in questions}):
        images = sorted(
            {item["image"] for item in questions if item["modality"] == modality}, key=_draw
        )
        partner |= (
            dict(zip(images, images[1:] + images[:1], strict=True)) if len(images) > 1 else {}
        )
    return partner


def _draw(name: str) -> bytes:
    """Sort key: a hash, so that the order is unrelated to names and machine-independent."""
    return hashlib.sha256(name.encode()).digest()


if __name__ == "__main__":
    run_stage(main)
