"""Evaluation benchmark: questions per second of stage evaluate and of the published script.

Also checks that both give the same answers.

    python -m benchmarks.evaluate [--quick] [--json FILE]

In turn on the same weights, questions and images: Med-R1's way (transformers' `generate`, batches
of 64, at most 256 new tokens, every question with its image again) and ours. Rows: a random model
of Qwen2-VL's proportions, whose answers all have 10 tokens, and the embedded base, which has learnt
to answer; 5 questions an image, as the embedded corpus has, and 1, as nearly all of OmniMedVQA's
published test splits have. Medians over the repeats and their ratio; then what the two ablations
add, and what it saves that rows leave the batch when they end. The full run takes 3 minutes on 2
cores, --quick less than one. On a GPU: --model qwen2-vl-2b.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Final

_OF_SAMPLE: Final = 5
"""Questions an image: the embedded corpus has 1,469 test questions about 305 images, the published
splits 17,662 about 17,352.
"""
_QUICK: Final = 24
_IMAGES: Final = 64
_SHORT: Final = 10
"""Tokens of an answer without thoughts."""


def main() -> None:
    """Measure, print tables, write the JSON."""
    import torch

    from benchmarks.evaluate.measure import (
        EMBEDDED,
        Case,
        compare,
        measure_leaving,
        measure_variants,
    )
    from stages.core.outputs import write_json
    from stages.core.provenance import collect_provenance

    given = _arguments()
    _quiet()
    repeats = given.repeats or (1 if given.quick else 3)
    rows, variants, leaving = [], None, None
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:

        def fresh() -> Path:
            path = Path(folder) / str(len(list(Path(folder).iterdir())))
            path.mkdir()
            return path

        for case in _cases(given):
            rows.append(
                compare(
                    case, fresh(), repeats, lambda text: print(text, file=sys.stderr, flush=True)
                )
            )
        if not (given.quick or given.model):
            few = Case(EMBEDDED, _IMAGES, _OF_SAMPLE)
            variants = measure_variants(few, fresh(), repeats)
            # answers with thoughts, which differ in length
            leaving = measure_leaving(
                Case(EMBEDDED, _IMAGES, _OF_SAMPLE, style="think"), fresh(), repeats
            )
    first = rows[0]
    result: dict[str, Any] = {
        "speedup": first["speedup"],
        "same_answers": min(row["same_answers"] for row in rows),
        "questions_per_second": first["questions_per_second"]["ours"],
        "published_questions_per_second": first["questions_per_second"]["published"],
        "rows": rows,
        "ablations": variants,
        "leaving": leaving,
        "repeats": repeats,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "provenance": collect_provenance({}),
    }
    show(result)
    if given.json:
        write_json(given.json, result)


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(Console().width, 120))
    table = Table(
        title=(
            f"Questions a second, on {result['device']} ({result['threads']} threads), medians of"
            f" {result['repeats']}"
        )
    )
    for name in (
        "model",
        "questions",
        "an image",
        "tokens",
        "published",
        "ours",
        "speedup",
        "same answers",
    ):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in result["rows"]:
        speeds = row["questions_per_second"]
        table.add_row(
            row["model"],
            str(row["questions"]),
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
                f"{row['model']}: question {each['question']} differs where the logits of two"
                f" tokens do by {each['margin']:.2g}"
            )
    if result["ablations"]:
        console.print(
            "ours with both ablations, three answers a question:"
            f" {result['ablations']['times_real_only']:.2f} times the seconds"
        )
    if result["leaving"]:
        console.print(
            f"think: rows that ended leave the batch: {result['leaving']['saved']:.2f} times as"
            " fast as if they stayed"
        )


def _cases(given: argparse.Namespace) -> list[Any]:
    from benchmarks.evaluate.measure import EMBEDDED, Case

    if given.model:
        style = "no-think" if given.completions <= 2 * _SHORT else "think"
        answer = None if given.model == EMBEDDED else given.completions
        return [
            Case(given.model, -(-given.questions // each), each, answer, style)  # type: ignore[arg-type]
            for each in given.questions_per_image
        ]
    images = _QUICK if given.quick else _IMAGES
    single = (2 if given.quick else 3) * images
    cases = []
    for model, answer in (("10m", _SHORT), (EMBEDDED, None)):
        cases += [Case(model, images, _OF_SAMPLE, answer), Case(model, single, 1, answer)]
    return cases


def _arguments() -> argparse.Namespace:
    from benchmarks.evaluate.measure import EMBEDDED
    from benchmarks.grpo_step.models import SHAPES

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer images, once")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--model", choices=[EMBEDDED, *SHAPES], help="this model alone")
    parser.add_argument(
        "--completions",
        type=int,
        default=_SHORT,
        help="tokens of an answer of a random model (default: %(default)s)",
    )
    parser.add_argument(
        "--questions", type=int, default=256, help="with --model, how many (default: %(default)s)"
    )
    parser.add_argument(
        "--questions-per-image",
        type=int,
        nargs="+",
        default=[1, _OF_SAMPLE],
        metavar="N",
        help="with --model (default: 1, then 5)",
    )
    parser.add_argument("--repeats", type=int, help="runs of each way; 3, with --quick 1")
    given = parser.parse_args()
    for name in ("completions", "questions", "repeats"):
        if (value := getattr(given, name)) is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, not {value}")
    if min(given.questions_per_image) < 1:
        parser.error("--questions-per-image takes numbers of 1 or more")
    return given


def _quiet() -> None:
    """What libraries say to their own developers hides the figures."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
