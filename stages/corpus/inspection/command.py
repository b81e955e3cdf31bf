"""The corpus check: what a corpus contains, what would be refused and why, and how to fix it.

    med-r1 check FOLDER_OR_ARCHIVE [--json FILE] [--no-images] [--strict] [--examples N]

Takes a folder or archive in OmniMedVQA's layout, or with a CSV and images (docs/own-data.md).
Writes nothing but FILE.

Exit code: 0, every record is usable; 1, some are refused, a data test would stop stage splits, or
with --strict there are notes; 2, nothing can be used.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.core.params import SHIPPED_PARAMS, load_params
from stages.corpus.archives.source import open_corpus
from stages.corpus.inspection.inspect import Inspection, as_json, inspect

EXIT_CODES: Final = {"ready": 0, "problems": 1, "unusable": 2}
"""Status of an inspection -> exit code."""
_WIDTH: Final = 132
"""Columns if the output is not a terminal."""
_CONVERTED: Final = (".xlsx", ".xlsm", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of files that stages.corpus.formats reads."""


def run(
    corpus_path: Path,
    *,
    json_file: Path | None = None,
    images: bool = True,
    strict: bool = False,
    examples: int = 3,
) -> int:
    """Print a corpus's contents and problems; return the exit code.

    `images`: decode every image; `strict`: notes count as problems; `examples`: per kind of
    finding, at most.
    """
    try:
        params = load_params(layout.PARAMS if layout.PARAMS.is_file() else SHIPPED_PARAMS)
        if not corpus_path.exists():
            raise InputError(
                f"{corpus_path} is neither a file nor a folder: pass the path of the corpus"
            )
        if corpus_path.is_file() and corpus_path.suffix.lower() in (".csv", ".json"):
            raise InputError(
                f"{corpus_path} is a question file: pass the folder {corpus_path.parent}, which"
                " contains the images, too"
            )
        if corpus_path.is_file() and corpus_path.suffix.lower() in _CONVERTED:
            raise InputError(
                f"{corpus_path} is converted before it is used: run `med-r1 use {corpus_path}`,"
                " which checks it as well and writes nothing"
            )
        if json_file and json_file.is_dir():
            raise InputError(
                f"--json {json_file} is a folder: name a file, as {json_file}/ward.json"
            )
        with (
            tempfile.TemporaryDirectory(prefix="check-") as scratch,
            open_corpus(corpus_path, params.corpus.limits, Path(scratch)) as corpus,
        ):
            inspection = inspect(corpus, params, images=images, examples=examples)
    except InputError as error:
        text = "\n".join(map(plain, str(error).splitlines()))
        print(f"error: {text}", file=sys.stderr)
        return EXIT_CODES["unusable"]
    status = inspection.status(strict)
    if json_file:
        write_json(json_file, {"corpus": str(corpus_path), **as_json(inspection, strict)})
    print_inspection(corpus_path, inspection, status)
    if inspection.has_more_than(examples):
        print(f"Up to {examples} examples of each kind were printed: --examples N prints more")
    return EXIT_CODES[status]


def plain(text: str) -> str:
    """Escape everything that could move the cursor, change colours or reverse the text."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def print_inspection(path: Path, inspection: Inspection, status: str) -> None:
    """Print contents, findings and status of a corpus."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    files = inspection.question_files
    title = f"{path}: {inspection.layout} layout, {len(files)} question file(s): "
    console.print(escape(plain(title + ", ".join(files[:5]))))
    console.print(_table(inspection))
    if any(count > 1 for count in inspection.shown):
        numbers = [f"{count} in {questions}" for count, questions in inspection.shown.items()]
        console.print(f"Images that a question shows: {', '.join(numbers)} questions")
    if inspection.volumes:
        console.print(_describe_volumes(inspection))
    for line in inspection.slices.lines():
        console.print(escape(plain(line)), soft_wrap=True)
    if inspection.contexts:
        console.print(f"Questions with a context: {inspection.contexts}")
    if not inspection.decoded:
        console.print("Images were not decoded (--no-images): some may still be refused.")
    for finding in inspection.findings:
        colour = "yellow" if finding.level == "note" else "red"
        console.print(
            f"\n[bold {colour}]{escape(finding.kind)}: {finding.count}[/] ({finding.level})"
        )
        console.print(f"  {escape(finding.remedy)}")
        for example in finding.examples:
            what = "" if example.what == example.where else f": {example.what!r}"
            line = f"  - {example.where}{what}: {example.why}"
            console.print(escape(plain(line)), soft_wrap=True)
        if finding.count > len(finding.examples):
            console.print(f"  - and {finding.count - len(finding.examples)} more")
    console.print(
        f"\nread {inspection.read} records: {inspection.usable} usable,"
        f" {inspection.refused} refused: [bold]{status}[/]"
    )


def _describe_volumes(inspection: Inspection) -> str:
    planes: Counter[str] = Counter()
    for facts, count in inspection.volumes.items():
        planes[facts.plane] += count
    slices = [facts.frames for facts in inspection.volumes]
    extent = f"{min(slices)} to {max(slices)}" if len(set(slices)) > 1 else str(slices[0])
    stored = ", ".join(f"{plane} {count}" for plane, count in sorted(planes.items()))
    return f"Volumes: {planes.total()}, of {extent} slices or frames; stored: {stored}"


def _table(inspection: Inspection) -> Table:
    table = Table(title="Usable questions")
    table.add_column("modality")
    axes = inspection.axes
    for kind in axes["task"]:
        table.add_column(kind.replace("-", "\n"), justify="right")
    table.add_column("questions", justify="right")
    table.add_column("images", justify="right")
    totals: Counter[str] = Counter()
    for slug in axes["modality"]:
        counts = [inspection.questions.get((slug, kind), 0) for kind in axes["task"]]
        totals.update(dict(zip(axes["task"], counts, strict=True)))
        cells = [str(count or "") for count in counts]
        table.add_row(slug, *cells, str(sum(counts)), str(inspection.images.get(slug, 0)))
    table.add_section()
    cells = [str(totals[kind]) for kind in axes["task"]]
    table.add_row("all", *cells, str(totals.total()), str(sum(inspection.images.values())))
    return table
