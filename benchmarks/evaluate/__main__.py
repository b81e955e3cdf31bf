"""Evaluation benchmark: questions per second of stage evaluate and of the published script.

    python -m benchmarks.evaluate [--quick] [--images N] [--json FILE]

Interleaved on the same weights, questions and images: Med-R1's loop (transformers' `generate`,
batches of 64, at most 256 new tokens, every image encoded per question) and ours; also checks that
both give the same answers. Rows: a random model of Qwen2-VL's proportions, whose answers all have
10 tokens, and the embedded base, a trained model; 5 questions per image, as in the embedded corpus,
and 1, as in nearly all of OmniMedVQA's published test splits. Medians over the repeats and their
ratio; then the cost of the two ablations, and the gain from removing ended rows from the batch. The
full run takes 3 minutes on 2 cores, --quick less than one. On a GPU: --model qwen2-vl-2b.

With --images, every question is about N images, which stand before it in the order given, as many
views of one phantom; "per image" then counts the questions about the same N. Without --model there
are N times fewer questions.

With --model and --profile, both answer in the precision and with the batch size, attention and
threads of a profile in infra/profiles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.command_line import build_parser, silence_libraries
from stages.corpus.dataset.split_files import MAX_IMAGES

_OF_SAMPLE: Final = 5
"""Questions per image, about: 1,512 in the embedded corpus' test splits (17,662 about 17,352 in
the published ones).
"""
_QUICK: Final = 16
_IMAGES: Final = 64
_SHORT: Final = 10
"""Tokens of a no-think answer."""
_QUESTIONS: Final = 256
"""With --model, on a CPU."""
GPU_QUESTIONS: Final = 1104
"""With --model, on a GPU: two windows of some 552 rows, each of a batch of 512 and a small one, as
in the published test sets (`stages.generation.windows`: 512 to 1,024 rows).
"""
_PUBLISHED: Final = 256
"""Questions that the published loop answers: its batches of 64 are all alike."""


def main() -> None:
    """Measure, print tables, write the JSON."""
    import torch

    from benchmarks.evaluate.measure import (
        EMBEDDED,
        Case,
        compare,
        measure_ablations,
        measure_compaction,
    )
    from stages.core.outputs import write_json
    from stages.core.provenance import collect_provenance

    arguments = _arguments()
    silence_libraries()
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    rows = []
    ablations = leaving = None
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:

        def new_folder() -> Path:
            return Path(tempfile.mkdtemp(dir=folder))

        def report(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        for case in _cases(arguments):
            rows.append(compare(case, new_folder(), repeats, report))
        if not (arguments.quick or arguments.model):
            images = max(_IMAGES // arguments.images, 2)
            no_think = Case(EMBEDDED, images, _OF_SAMPLE, images_per_question=arguments.images)
            ablations = measure_ablations(no_think, new_folder(), repeats)
            # only think answers differ in length
            think = replace(no_think, style="think")
            leaving = measure_compaction(think, new_folder(), repeats)
    first = rows[0]
    result: dict[str, Any] = {
        "speedup": first["speedup"],
        "same_answers": min(row["same_answers"] for row in rows),
        "questions_per_second": first["questions_per_second"]["ours"],
        "published_questions_per_second": first["questions_per_second"]["published"],
        "rows": rows,
        "ablations": ablations,
        "leaving": leaving,
        "repeats": repeats,
        "profile": arguments.profile,
        "setting": _setting(arguments),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "provenance": collect_provenance({}),
    }
    show(result)
    if arguments.json:
        write_json(arguments.json, result)


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(Console().width, 120))
    table = Table(
        title=(
            f"Questions per second, on {result['device']} ({result['threads']} threads), medians of"
            f" {result['repeats']}"
        )
    )
    table.add_column("model")
    for name in (
        "questions",
        "images",
        "per image",
        "tokens",
        "published",
        "ours",
        "speedup",
        "same answers",
    ):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        speeds = row["questions_per_second"]
        table.add_row(
            row["model"],
            str(row["questions"]),
            str(row["images_per_question"]),
            str(row["questions_per_image"]),
            f"{row['tokens']['median']:.0f}",
            f"{speeds['published']:.1f}",
            f"{speeds['ours']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['same_answers']:.1%}",
        )
    console.print(table)
    for row in result["rows"]:
        for each in row["differing"]:
            console.print(
                f"{row['model']}: answers to question {each['question']} differ; logit margin"
                f" {each['margin']:.2g}"
            )
    if result["ablations"]:
        console.print(
            "ours with both ablations, three answers per question:"
            f" {result['ablations']['times_real_only']:.2f} times the seconds"
        )
    if result["leaving"]:
        console.print(
            f"think: {result['leaving']['saved']:.2f} times as fast as with ended rows in the batch"
        )


def _setting(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The settings that decide how many questions are answered in a second; None by default."""
    from benchmarks.grpo_step.setting import MODEL_OF, profile_params
    from stages.profiles.measured import evaluation_setting

    if not arguments.profile:
        return None
    setting = evaluation_setting(profile_params(arguments.profile, _style(arguments)))
    if arguments.model != MODEL_OF.get(arguments.profile):
        setting |= {"source": arguments.model, "revision": None}
    if arguments.images > 1:  # as no profile's: its forecasts are of questions about one image
        setting |= {"images": arguments.images}
    return setting


def _default_questions() -> int:
    import torch

    return GPU_QUESTIONS if torch.cuda.is_available() else _QUESTIONS


def _style(arguments: argparse.Namespace) -> Any:
    return "no-think" if arguments.completions <= 2 * _SHORT else "think"


def _cases(arguments: argparse.Namespace) -> list[Any]:
    from benchmarks.evaluate.measure import EMBEDDED, Case
    from benchmarks.grpo_step.setting import profile_params

    if arguments.model:
        options: dict[str, Any] = {"images_per_question": arguments.images}
        if arguments.profile:
            params = profile_params(arguments.profile)
            options |= {
                "dtype": params.evaluate.dtype or params.base.dtype,
                "attention": params.base.attention,
                "threads": params.base.threads,
                "batch_size": params.evaluate.batch_size,
            }
        answer = None if arguments.model == EMBEDDED else arguments.completions
        style = _style(arguments)
        questions = arguments.questions or _default_questions()
        options["published_questions"] = _PUBLISHED
        return [
            Case(arguments.model, -(-questions // each), each, answer, style, **options)
            for each in arguments.questions_per_image
        ]
    # as many images in all, however many belong to a question
    images = max((_QUICK if arguments.quick else _IMAGES) // arguments.images, 2)
    single = (2 if arguments.quick else 3) * images
    cases = []
    for model, answer in (("10m", _SHORT), (EMBEDDED, None)):
        cases += [Case(model, images, _OF_SAMPLE, answer), Case(model, single, 1, answer)]
    return [replace(case, images_per_question=arguments.images) for case in cases]


def _arguments() -> argparse.Namespace:
    from benchmarks.evaluate.measure import EMBEDDED
    from benchmarks.grpo_step.models import SHAPES

    parser = build_parser("evaluate", __doc__, quick="fewer images, one repeat")
    parser.add_argument("--model", choices=[EMBEDDED, *SHAPES], help="only this model")
    parser.add_argument("--profile", help="with --model: test as this profile does, such as full")
    parser.add_argument(
        "--completions",
        type=int,
        default=_SHORT,
        help="tokens per answer of a random model (default: %(default)s)",
    )
    parser.add_argument(
        "--questions",
        type=int,
        help=f"with --model (default: {_QUESTIONS}, on a GPU {GPU_QUESTIONS}); the published loop"
        f" answers at most {_PUBLISHED} of them",
    )
    parser.add_argument(
        "--questions-per-image",
        type=int,
        nargs="+",
        default=[1, _OF_SAMPLE],
        metavar="N",
        help="with --model (default: 1, then 5)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=1,
        metavar="N",
        help=f"images per question, 1 to {MAX_IMAGES} (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, help="runs per loop (default: 3, with --quick 1)")
    arguments = parser.parse_args()
    for name in ("completions", "questions", "repeats"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, not {value}")
    if not 1 <= arguments.images <= MAX_IMAGES:
        parser.error(f"--images must be 1 to {MAX_IMAGES}, not {arguments.images}")
    if arguments.profile and not arguments.model:
        parser.error("--profile needs --model, which need not be the profile's")
    if min(arguments.questions_per_image) < 1:
        parser.error("--questions-per-image must be 1 or more")
    return arguments


if __name__ == "__main__":
    main()
