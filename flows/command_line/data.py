"""Commands that check, choose and fetch data and base models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from typer import Argument, BadParameter, Option

from flows.command_line.application import app, command, complete_profile

PANEL: Final = "Data"


@command(
    app,
    "med-r1 check ward",
    "med-r1 check corpus.zip --json findings.json",
    panel=PANEL,
    anywhere=True,
)
def check(
    corpus: Annotated[Path, Argument(metavar="FOLDER_OR_ARCHIVE", help="The corpus.")],
    json: Annotated[
        Path | None, Option(metavar="FILE", help="Write the findings there as well.")
    ] = None,
    images: Annotated[bool, Option(help="Decode every image.")] = True,
    strict: Annotated[bool, Option("--strict", help="Exit with 1 for warnings too.")] = False,
    examples: Annotated[int, Option(min=0, metavar="N", help="Examples per kind of finding.")] = 3,
    fix: Annotated[
        Path | None,
        Option(metavar="OUT", help="CORPUS is a sheet: write a corrected copy as CSV."),
    ] = None,
) -> int:
    """Check a corpus before it is used.

    Prints what it contains, what would be refused and why, and how to fix it.
    Writes nothing but FILE and OUT, whose changes are listed one by one.

    Exit code: 0 every record is usable, 1 some are refused or a data test would
    stop the pipeline, 2 nothing can be used.
    """
    if fix:
        from stages.corpus.formats.fix import fix_sheet

        changes = fix_sheet(corpus, fix)
        for change in changes:
            print(change)
        left = sum(not change.is_fixed for change in changes)
        print(f"{fix}: {len(changes) - left} cells corrected, {left} left as they are")
        return 1 if left else 0
    from stages.corpus.inspection.command import run

    return run(corpus, json_file=json, images=images, strict=strict, examples=examples)


@command(
    app,
    "med-r1 use ward",
    "med-r1 use ward --yes",
    "med-r1 use scans --modality mri --yes",
    panel=PANEL,
)
def use(
    corpus: Annotated[
        Path,
        Argument(
            metavar="CORPUS",
            help="A folder, an archive, or a file: CSV, TSV, XLSX, JSON Lines, JSON, Parquet.",
        ),
    ],
    yes: Annotated[bool, Option("--yes", help="Write the settings, and pin the corpus.")] = False,
    scale: Annotated[
        str, Option(metavar="PROFILE", help="sample; or full or full-3b, on GPUs.")
    ] = "sample",
    name: Annotated[str | None, Option(help="Of the profile; by default the corpus's.")] = None,
    elsewhere: Annotated[
        bool, Option("--elsewhere", help="Write even if this machine cannot run it.")
    ] = False,
    folds: Annotated[
        int | None, Option(min=2, max=10, help="Cross-validate: every question is tested once.")
    ] = None,
    modality: Annotated[str | None, Option(help="Of all images, if the source has none.")] = None,
    question_type: Annotated[
        str | None, Option(help="Of all questions, if the source has none.")
    ] = None,
    encoding: Annotated[str | None, Option(help="Of tables that are not UTF-8 or UTF-16.")] = None,
    sheet: Annotated[str | None, Option(help="Of a workbook with several.")] = None,
    label: Annotated[
        list[str] | None, Option(help="Column of labels to ask about; may be repeated.")
    ] = None,
    bins: Annotated[
        list[str] | None, Option(metavar="COLUMN=A,B,C", help="Bounds for a column of numbers.")
    ] = None,
    equalize: Annotated[
        bool, Option("--equalize", help="Refuse surplus images of frequent labels.")
    ] = False,
    accept_blind: Annotated[
        bool, Option("--accept-blind", help="Accept questions that wording alone answers.")
    ] = False,
) -> None:
    """Set everything to another corpus; shows it first.

    Reads questions from sheets, workbooks, JSON, Parquet or VLMEvalKit's TSV, and makes
    questions of class folders and label sheets. Writes nothing without --yes;
    `med-r1 profile sample` reverts it.
    """
    from stages.corpus.formats.questions import ConversionOptions, parse_bins
    from stages.profiles.use import use

    options = ConversionOptions(
        modality=modality,
        question_type=question_type,
        encoding=encoding,
        sheet=sheet,
        labels=tuple(label or ()),
        bins=parse_bins(bins or []),
        equalize=equalize,
        accept_blind=accept_blind,
    )
    written = use(
        corpus, scale=scale, name=name, yes=yes, elsewhere=elsewhere, folds=folds, options=options
    )
    if written:
        from flows.source.transfer import run

        run(Path.cwd())


@command(app, "med-r1 profile full --dry-run", "med-r1 profile sample", panel=PANEL)
def profile(
    name: Annotated[
        str,
        Argument(
            metavar="PROFILE",
            help="sample, full, full-3b, or a YAML file.",
            autocompletion=complete_profile,
        ),
    ],
    dry_run: Annotated[bool, Option("--dry-run", help="Show everything, write nothing.")] = False,
    elsewhere: Annotated[
        bool, Option("--elsewhere", help="Write even if this machine cannot run it.")
    ] = False,
) -> None:
    """Set params.yaml and data.dvc to another scale.

    Prints the changes, the requirements and what this machine lacks; writes nothing
    if a run here could not finish.
    """
    from stages.profiles.command import apply

    apply(name, dry_run=dry_run, elsewhere=elsewhere)


@command(app, "med-r1 fetch", panel=PANEL)
def fetch() -> None:
    """Fetch the source that data.dvc imports, and pin it.

    Resumes an interrupted transfer.
    """
    from flows.source.transfer import run

    run(Path.cwd())


@command(
    app, "med-r1 fetch-file https://example.org/corpus.zip corpus.zip", panel=PANEL, anywhere=True
)
def fetch_file(
    url: Annotated[
        str, Argument(metavar="URL", help="A path, or an http(s), s3, gs or ssh address.")
    ],
    target: Annotated[Path, Argument(metavar="TARGET", help="Where to write the file.")],
    sha256: Annotated[str | None, Option(metavar="HEX", help="Its SHA-256.")] = None,
    md5: Annotated[str | None, Option(metavar="HEX", help="Its MD5.")] = None,
) -> None:
    """Fetch one file without DVC, resuming an interrupted transfer."""
    if sha256 and md5:
        raise BadParameter("give --sha256 or --md5, not both")
    from flows.source.fetch import run

    run(url, target, sha256=sha256, md5=md5)


@command(app, "med-r1 base-commit Qwen/Qwen2-VL-2B-Instruct", panel=PANEL, anywhere=True)
def base_commit(
    model: Annotated[
        str, Argument(metavar="ID", help="A model id, e.g. Qwen/Qwen2-VL-2B-Instruct.")
    ],
    ref: Annotated[str, Argument(metavar="REF", help="A branch or tag.")] = "main",
) -> None:
    """Print the commit of a model on the hub, for base.revision."""
    from stages.base.hub import resolve

    print(resolve(model, ref))
