"""Stage `evaluate@<checkpoint>`: greedy completions for the test questions of its axis.

    python -m stages.evaluate ct        the checkpoint on the test splits of all modalities
    python -m stages.evaluate base      the base on the test splits of both axes

Answers and accuracies are not computed here but derived from the rows by stage report. Completions
are cached in .scratch/answers as they come: a killed run resumes, and a later one generates only
what is new. Several GPUs share the questions, one process per GPU; MED_R1_PROCESSES sets another
number of processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.core import layout
from stages.core.cli import run_stage, stage_parser
from stages.core.code_version import stage_code
from stages.core.cores import available_cores
from stages.core.distributed.devices import check_gpus
from stages.core.distributed.ranks import check_still_wanted, run_ranks, wanted_processes
from stages.core.errors import InputError
from stages.core.iteration.progress import progress_reporter
from stages.core.outputs import atomic_file
from stages.core.params import Params, load_params
from stages.core.provenance import collect_provenance
from stages.core.services.tracking import check_tracking, tracked
from stages.corpus.dataset.problems import parse_solution
from stages.corpus.dataset.split_files import images_of
from stages.generation.items import read_items
from stages.generation.variants import REAL, build_questions, other_contexts
from stages.generation.windows import BLANK, Key, Question, cut_windows, row_keys
from stages.policy.fingerprint import files_hash, fingerprint
from stages.policy.weights import ORIGIN, weight_hashes
from stages.predictions.schema import IMAGE_PARTS, LEFT_OUT, OPTIONAL, SCHEMA, schema_of
from stages.taxonomy import fold_number

if TYPE_CHECKING:  # imports torch
    from stages.generation.generate import Answers, Completion


def main() -> None:
    """Evaluate one policy and write predictions/<checkpoint>.parquet."""
    arguments = _parse_arguments()
    name = arguments.checkpoint
    params = load_params()
    evaluation = params.require_evaluation(name)
    items = read_items(evaluation.axis, params.splits.kind, fold_number(name))
    folder = layout.model(name)
    if not folder.is_dir():
        stage = "base" if name == "base" else f"train@{name}"
        raise InputError(f"{folder} is missing: run `dvc repro {stage}`")
    if layout.left_out(name).is_file():
        _leave_out(name)
        return
    from stages.policy.loading import check_policy_files  # imports torch

    questions = build_questions(items, params.prompt.style, ablations=params.evaluate.ablations)
    if arguments.rank is not None:
        work = _Work(name, folder, params, questions, arguments.policy_key)
        for _ in work.answer_rank(arguments.rank, arguments.world_size):
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
    work = _Work(name, folder, params, questions, _policy_key(folder, params, provenance))
    with tracked(params, "evaluate", name, provenance, identity=work.identity) as run:
        run.artifact(name, "model", partial(weight_hashes, folder))
        completions, provenance["batch_sizes"] = work.answer_all()
        rows = _rows(name, items, questions, completions)
        rows.sort(key=lambda row: row["question_id"])
        schema = schema_of(rows).with_metadata({"provenance": json.dumps(provenance)})
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
    work.cache.trim(round(params.cache.answers_gb * 1e9))
    print(f"{name}: {len(rows)} questions answered -> {layout.predictions(name)}")


def _leave_out(name: str) -> None:
    """Write the predictions, none, of a checkpoint that was left out for lack of data."""
    provenance = collect_provenance({}) | {LEFT_OUT: True}
    schema = SCHEMA.with_metadata({"provenance": json.dumps(provenance)})
    with atomic_file(layout.predictions(name)) as path:
        pq.write_table(schema.empty_table(), path)
    print(f"{name}: left out, as its split has too little data -> {layout.predictions(name)}")


def _parse_arguments() -> argparse.Namespace:
    parser = stage_parser("evaluate", __doc__)
    parser.add_argument("checkpoint", help="base, or a key of checkpoints in params.yaml")
    # For the processes that this stage starts: a rank adds its answers to the cache and writes no
    # predictions.
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--world-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--policy-key", help=argparse.SUPPRESS)
    return parser.parse_args()


class _Work:
    """The questions of one evaluation, cut into windows, and the cache of their answers."""

    def __init__(
        self,
        name: str,
        folder: Path,
        params: Params,
        questions: Sequence[Question],
        policy_key: str,
    ) -> None:
        import torch

        from stages.generation.answer_cache import AnswerCache, window_key
        from stages.generation.batch_size import BatchSize

        self._name = name
        self._folder = folder
        self._params = params
        self._questions = questions
        self._policy_key = policy_key
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._batch_size = BatchSize(params.evaluate.batch_size, self._device)
        self._windows = cut_windows(questions, self._batch_size.rows)
        self._keys = [window_key(policy_key, questions, window) for window in self._windows]
        self._rows = [row_keys(questions, window) for window in self._windows]
        self.cache = AnswerCache(layout.ANSWER_CACHE)

    @property
    def identity(self) -> str:
        """Fingerprint of everything that determines the answers."""
        return fingerprint({"windows": self._keys})

    def answer_all(self) -> tuple[dict[Key, Completion], list[int]]:
        """All answers, and the sorted batch sizes they were generated with.

        Those that are not cached are generated in this process or, on several GPUs, in several.
        """
        total = sum(map(len, self._rows))
        # read, not only looked for, so that damaged ones do not count
        answered = self._read(range(len(self._windows)))
        known = sum(len(answers.completions) for answers in answered.values())
        if known:
            print(
                f"{self._name}: {known} of {total} answers are in {layout.ANSWER_CACHE}",
                file=sys.stderr,
            )
        if known < total:
            report = _progress_reporter(self._name, total, known)
            ranks = min(wanted_processes(), len(self._windows))
            if ranks > 1:
                command = ["stages.evaluate", self._name, "--policy-key", self._policy_key]
                run_ranks(command, ranks, lambda: report(self._count()))
                answered |= self._read(self._missing(answered))
            # after ranks: what another evaluation, which keeps the cache to its limit, has deleted
            for window, answers in self._generate(self._missing(answered)):
                answered[window] = answers
                report(sum(len(each.completions) for each in answered.values()))
        completions: dict[Key, Completion] = {}
        sizes: set[int] = set()
        for answers in answered.values():
            completions |= answers.completions
            sizes.update(answers.batch_sizes)
        return completions, sorted(sizes)

    def answer_rank(self, rank: int, processes: int) -> Iterator[None]:
        """Generate the missing answers of one rank's windows, the `rank`-th of `processes`.

        Yields after each window.
        """
        own = range(rank, len(self._windows), processes)
        answered = self._read(own)
        for _ in self._generate([at for at in own if at not in answered], processes):
            yield

    def _read(self, windows: Iterable[int]) -> dict[int, Answers]:
        """Window -> its cached answers, of those that are cached."""
        cached = ((at, self.cache.read(self._keys[at], self._rows[at])) for at in windows)
        return {at: answers for at, answers in cached if answers is not None}

    def _missing(self, answered: Container[int]) -> list[int]:
        """The windows that are not answered."""
        return [at for at in range(len(self._windows)) if at not in answered]

    def _generate(
        self, windows: Sequence[int], processes: int = 1
    ) -> Iterator[tuple[int, Answers]]:
        """Generate and cache the answers to windows, in their order; `processes` do so at once."""
        if not windows:
            return
        import torch

        from stages.generation.generate import answer_greedily
        from stages.policy.loading import load_policy, load_processor

        params = self._params
        dtype = params.evaluate.dtype or params.base.dtype
        # only in processes that compute: the parent of ranks must not use GPU memory
        check_gpus(f"evaluate.dtype {dtype}" if dtype == "bfloat16" else None)
        torch.set_num_threads(params.base.threads)
        # A GPU answers faster than one thread opens images; on a CPU, threads would slow it down.
        loader_threads = 0
        if self._device.type == "cuda":
            loader_threads = max(available_cores() // processes, 1)
        try:
            generated = answer_greedily(
                load_policy(self._folder, dtype=dtype, attention=params.base.attention).to(
                    self._device
                ),
                load_processor(self._folder),
                self._questions,
                windows=[self._windows[at] for at in windows],
                batch_size=self._batch_size,
                max_new_tokens=params.evaluate.max_new_tokens,
                loader_threads=loader_threads,
            )
            for at, answers in zip(windows, generated, strict=True):
                self.cache.add(self._keys[at], self._rows[at], answers)
                yield at, answers
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of GPU memory ({str(error).splitlines()[0]}): lower evaluate.batch_size (now"
                f" {params.evaluate.batch_size}), or free the GPU; `nvidia-smi` lists its"
                " processes. Re-run the same command to resume from the saved answers"
            ) from error

    def _count(self) -> int:
        """Number of cached answers."""
        pairs = zip(self._keys, self._rows, strict=True)
        return sum(len(rows) for key, rows in pairs if self.cache.has(key))


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


def _rows(
    name: str,
    items: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    completions: Mapping[Key, Completion],
) -> list[dict[str, Any]]:
    """The prediction rows of some questions, which are those of the items."""
    representatives = {images_of(item): item["image"] for item in items}
    contexts = other_contexts(items)
    rows = []
    for index, (item, question) in enumerate(zip(items, questions, strict=True)):
        fields = (*SCHEMA.names, *OPTIONAL.names)
        row = {"checkpoint": name, **{field: item[field] for field in fields if field in item}}
        row["gold"] = parse_solution(item["solution"])
        if "shuffled" in question.variants:
            row["shuffled_image"] = representatives[question.variants["shuffled"].images]
        if "other_context" in question.variants:
            row["other_context_context"] = contexts[item["modality"], item["context"]]
        rows.append(row | _shown(question) | _answers(completions, index, question))
    return rows


def _shown(question: Question) -> dict[str, Any]:
    """The columns of the images that the variants of a question show."""
    row: dict[str, Any] = {}
    for name, variant in question.variants.items():
        if name == "blank":
            row["blank_image"] = BLANK
        elif name in IMAGE_PARTS or (name == "shuffled" and len(variant.images) > 1):
            row[f"{name}_images"] = list(variant.images)
    return row


def _answers(
    completions: Mapping[Key, Completion], index: int, question: Question
) -> dict[str, Any]:
    """The columns of the answers to the question at `index`, in all its variants."""
    row: dict[str, Any] = {}
    for variant in question.variants:
        prefix = "" if variant == REAL else f"{variant}_"
        completion = completions[index, variant]
        row |= {
            f"{prefix}output": completion.text,
            f"{prefix}completion_tokens": len(completion.ids),
        }
    return row


def _policy_key(folder: Path, params: Params, provenance: Mapping[str, Any]) -> str:
    """Hash of all that decides an answer beside the questions; see docs/architecture.md."""
    import torch

    suffixes = (".json", ".safetensors", ".jinja", ".txt")
    files = [
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in suffixes and path.name != ORIGIN
    ]
    return fingerprint(
        {
            "policy": files_hash(files),
            "versions": provenance["versions"],
            "settings": {
                "dtype": params.evaluate.dtype or params.base.dtype,
                "attention": params.base.attention,
                "threads": params.base.threads,
                "batch_size": params.evaluate.batch_size,
                "max_new_tokens": params.evaluate.max_new_tokens,
            },
            "code": files_hash(stage_code("evaluate")),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
    )


if __name__ == "__main__":
    run_stage(main)
