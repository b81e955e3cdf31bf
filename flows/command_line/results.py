"""Commands that show, compare and publish results, and the champion's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from typer import Argument, Option

from flows.command_line.application import app, check_root, command, complete_checkpoint, make_group
from stages.core import layout

PANEL: Final = "Results"
Checkpoint = Annotated[
    str,
    Argument(
        metavar="CHECKPOINT",
        help="A checkpoint of params.yaml.",
        autocompletion=complete_checkpoint,
    ),
]

champion = make_group("Show or change the champion: the checkpoints in use.")


@command(
    app,
    "med-r1 report",
    "med-r1 report --predictions DIR --out rebuilt",
    panel=PANEL,
    anywhere=True,
)
def report(
    predictions: Annotated[
        Path | None,
        Option(metavar="DIR", help="Rebuild the report from only the *.parquet files in DIR."),
    ] = None,
    blind_baselines: Annotated[
        Path, Option(metavar="DIR", help="With --predictions: blind baselines, optional.")
    ] = layout.PRIOR,
    out: Annotated[
        Path, Option(metavar="DIR", help="With --predictions: where to write.")
    ] = layout.REBUILT,
) -> None:
    """Print the results, or rebuild the report from predictions."""
    from stages.reporting import build

    if predictions:
        build.rebuild(predictions, blind_baselines, out)
    else:
        check_root(Path.cwd())
        build.show()


@command(app, "med-r1 compare no-think/predictions think/predictions", panel=PANEL, anywhere=True)
def compare(
    first: Annotated[Path, Argument(metavar="RUN_A", help="A directory of predictions.")],
    second: Annotated[Path, Argument(metavar="RUN_B", help="Another one.")],
    json: Annotated[Path | None, Option(metavar="FILE", help="Write everything as JSON.")] = None,
    csv: Annotated[
        Path | None,
        Option(metavar="DIR", help="Write modality.csv, task.csv, means.csv and published.csv."),
    ] = None,
    samples: Annotated[int, Option(min=100, help="Bootstrap resamples per interval.")] = 10_000,
    seed: Annotated[int, Option(help="Seed of the bootstrap.")] = 42,
) -> None:
    """Compare two runs on the same splits, cell by cell.

    Differences are RUN_A minus RUN_B.
    """
    from stages.comparison.command import run

    run(first, second, json_file=json, csv_folder=csv, samples=samples, seed=seed)


@command(
    app,
    "med-r1 publish ct --repo OWNER/NAME",
    "med-r1 publish ct --remote shared --yes",
    panel=PANEL,
)
def publish(
    checkpoint: Checkpoint,
    repo: Annotated[
        str | None,
        Option(metavar="OWNER/NAME", help="Model repository on the hub; created if missing."),
    ] = None,
    remote: Annotated[
        str | None, Option(metavar="NAME", help="DVC remote, as `dvc remote list` names it.")
    ] = None,
    public: Annotated[
        bool, Option("--public", help="Make the repository public; by default private.")
    ] = False,
    allow_dirty: Annotated[
        bool, Option("--allow-dirty", help="Publish results of uncommitted code.")
    ] = False,
    yes: Annotated[bool, Option("--yes", help="Upload; by default only list the files.")] = False,
) -> None:
    """Publish a checkpoint to the Hugging Face hub or a DVC remote.

    Uploads weights, processor, card and predictions, with the token in HF_TOKEN.
    """
    from stages.publishing.command import run

    run(checkpoint, repo, remote, public=public, allow_dirty=allow_dirty, yes=yes)


app.add_typer(champion, name="champion", rich_help_panel=PANEL)


@command(champion, "med-r1 champion show")
def show() -> None:
    """Print the checkpoints in use and their accuracy."""
    from flows.registry.command import show

    show(Path.cwd())


@command(champion, "med-r1 champion promote --why 'new base'")
def promote(
    why: Annotated[
        str, Option(help="The reason, recorded with the champion.")
    ] = "promoted by hand",
) -> None:
    """Make the current results the champion, without the gate."""
    from flows.registry.command import promote

    promote(Path.cwd(), why)


@command(champion, "med-r1 champion rollback", "med-r1 champion rollback --to 2")
def rollback(
    to: Annotated[
        int | None, Option(metavar="N", help="Version; by default the one before this.")
    ] = None,
) -> None:
    """Make an earlier version the champion."""
    from flows.registry.command import rollback

    rollback(Path.cwd(), to)


@command(champion, "med-r1 champion checkout ct FOLDER")
def checkout(
    checkpoint: Checkpoint,
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Replaced if it exists.")],
    version: Annotated[
        int | None, Option(metavar="N", help="Version; by default the champion.")
    ] = None,
) -> None:
    """Copy the weights of a champion into a folder."""
    from flows.registry.command import checkout

    checkout(Path.cwd(), checkpoint, folder, version)
