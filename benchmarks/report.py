"""Report benchmark: time and memory of statistics, tables and page of a full-size run, no GPU.

The figures of docs/scoring.md.

    python -m benchmarks.report [--quick] [--json FILE]

14 checkpoints with 18,000 random predictions each, ablations included, on questions like
OmniMedVQA's in number and form; the blind baselines are fitted on four times as many. Memory is the
peak of the process.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from stages import prior
from stages.core import layout
from stages.core.cores import available_cores
from stages.core.outputs import write_json
from stages.core.params import load_params, shipped_taxonomy
from stages.core.provenance import collect_provenance
from stages.corpus.dataset.problems import LETTERS, format_problem, format_solution
from stages.generation.variants import shuffled_images
from stages.predictions.schema import ABLATIONS, SCHEMA
from stages.reporting import build
from stages.scoring.blind_baseline import as_json
from stages.scoring.tables import CELLS
from stages.taxonomy import AXIS_NAMES

REPOSITORY = Path(__file__).parents[1]
TESTED = 18_000
"""Test questions per checkpoint, the same for both axes; four times as many train."""
_QUICK = 1_800
TARGETS = {"seconds": 60.0, "memory_mib": 2048}


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = build_parser("report", __doc__, quick=f"{_QUICK:,} questions instead of {TESTED:,}")
    arguments = parser.parse_args()
    provenance = collect_provenance({})
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        result = measure(Path(folder), _QUICK if arguments.quick else TESTED)
    title = f"{result['checkpoints']} checkpoints, {result['questions']:,} predictions each"
    table = Table("measure", "measured", "target", title=title)
    table.add_row("blind baselines (stage prior)", f"{result['prior_seconds']:.1f} s", "")
    table.add_row(
        "statistics and report", f"{result['seconds']:.1f} s", f"{TARGETS['seconds']:.0f} s"
    )
    table.add_row("peak memory", f"{result['memory_mib']:,} MiB", f"{TARGETS['memory_mib']:,} MiB")
    table.add_row("page", f"{result['page_bytes'] / 1e6:.2f} MB", "")
    Console().print(table)
    if arguments.json:
        more = {"promised": TARGETS, "cores": available_cores(), "provenance": provenance}
        write_json(arguments.json, result | more)


def measure(root: Path, tested: int) -> dict[str, Any]:
    """Seconds and peak MiB of the blind baselines and of the report on generated predictions.

    `tested`: test questions per checkpoint.
    """
    shutil.copy(REPOSITORY / layout.PARAMS, root)
    with contextlib.chdir(root), contextlib.redirect_stdout(None):
        names = ["base", *load_params().checkpoints]
        questions = make_questions(tested)
        for axis, column in CELLS.items():
            for slug, rows in questions.groupby(column):
                for part, mask in (("train", ~rows["test"]), ("test", rows["test"])):
                    write_json(layout.split(axis, str(slug), part, "grouped"), _split(rows[mask]))
        for number, name in enumerate(names):
            write_predictions(questions[questions["test"]], name, number)
        del questions
        start = time.monotonic()
        for axis in AXIS_NAMES:
            for baseline in prior.axis_blind_baselines(axis, "grouped"):
                write_json(layout.prior(baseline.axis, baseline.split), as_json(baseline))
        middle = time.monotonic()
        build.rebuild(layout.PREDICTIONS, layout.PRIOR, layout.REPORT)
        end = time.monotonic()
        page = build.PAGE.stat().st_size
    return {
        "checkpoints": len(names),
        "questions": tested,
        "prior_seconds": round(middle - start, 2),
        "seconds": round(end - middle, 2),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10,
        "page_bytes": page,
    }


def make_questions(tested: int) -> pd.DataFrame:
    """Random questions of all modalities and types with 2 to 4 options, most with an own image.

    The first `tested` of them are test questions, four times as many train.
    """
    n = 5 * tested
    rng = np.random.default_rng(0)
    axes = shipped_taxonomy().axes
    frame = pd.DataFrame(
        {
            "question_id": [f"Set_{i:06d}" for i in range(n)],
            "dataset": [f"Set {i}" for i in rng.integers(0, 42, n)],
            "modality": rng.choice(axes["modality"], n),
            "question_type": rng.choice(axes["task"], n),
            "n_options": rng.choice([2, 3, 4], n, p=[0.08, 0.02, 0.9]),
            "test": np.arange(n) < tested,
        }
    )
    frame["image"] = [
        f"{row.modality}/{image}.png"
        for row, image in zip(frame.itertuples(), rng.integers(0, n, n), strict=True)
    ]
    frame["gold"] = [LETTERS[int(rng.integers(number))] for number in frame["n_options"]]
    # answers are drawn from other words than distractors, with an overlap, as in the published
    # questions: blind baselines beat chance
    frame["options"] = [
        [
            f"word {rng.integers(0, 200) if letter == gold else rng.integers(50, 400)}-{letter}"
            for letter in LETTERS[:number]
        ]
        for number, gold in zip(frame["n_options"], frame["gold"], strict=True)
    ]
    return frame


def write_predictions(questions: pd.DataFrame, checkpoint: str, number: int) -> None:
    """Write one checkpoint's predictions: 60% correct, 40% correct without the image."""
    rng = np.random.default_rng([1, number])
    rows = questions[
        ["question_id", "dataset", "modality", "question_type", "image", "options", "gold"]
    ].copy()
    rows["checkpoint"] = checkpoint
    rows["modality_test"] = rows["task_test"] = True
    partner = shuffled_images(rows[["image", "modality"]].to_dict("records"))  # type: ignore[arg-type]
    shares = {"": 0.6} | {f"{variant}_": 0.4 for variant in ABLATIONS}
    for prefix, share in shares.items():
        right = rng.random(len(rows)) < share
        other = [
            LETTERS[(LETTERS.index(gold) + 1) % len(options)]
            for gold, options in zip(rows["gold"], rows["options"], strict=True)
        ]
        letters = np.where(right, rows["gold"], other)
        rows[f"{prefix}output"] = [
            f"<think>{'It is round. ' * 12}</think><answer>{letter}</answer>" for letter in letters
        ]
        rows[f"{prefix}completion_tokens"] = rng.integers(6, 250, len(rows))
    rows["blank_image"] = ""
    rows["shuffled_image"] = [partner[image,][0] for image in rows["image"]]
    provenance = {"params": {"splits.kind": "grouped", "prompt": {"style": "think"}}}
    path = layout.predictions(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(rows[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(provenance)}), path)


def _split(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "image": row["image"],
            "problem": format_problem("What is shown?", row["options"]),
            "solution": format_solution(row["gold"]),
            "options": list(row["options"]),
            **{name: row[name] for name in ("question_id", "dataset", "modality", "question_type")},
        }
        for row in rows.to_dict("records")
    ]


if __name__ == "__main__":
    main()
