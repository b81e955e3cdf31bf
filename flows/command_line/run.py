"""Commands that plan and run the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from typer import Option

from flows.command_line.application import app, command
from flows.prefect_api.environment import use_own_prefect
from stages.core.cli import exit_on_termination

PANEL: Final = "Run"
Only = Annotated[
    list[str] | None,
    Option(
        metavar="PATTERN",
        help=(
            "Stage to bring up to date with all it needs, e.g. train@ct, evaluate or 'train@*';"
            " repeatable."
        ),
    ),
]
Slots = Annotated[
    int | None,
    Option(
        metavar="N",
        help="Trainings and evaluations at once; by default one per GPU, on CPUs as many as fit.",
    ),
]
SlotsPerGpu = Annotated[
    int,
    Option(metavar="N", help="GPU stages that share a GPU, each with a part of its memory."),
]
Gpus = Annotated[
    str | None, Option(metavar="0,1", help="Indices of the GPUs to use; by default all visible.")
]


@command(app, "med-r1 plan", "med-r1 plan --only 'train@*' --slots 2", panel=PANEL)
def plan(
    only: Only = None,
    slots: Slots = None,
    slots_per_gpu: SlotsPerGpu = 1,
    json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what would run, why, in what order and for how long.

    Changes nothing.
    """
    from flows.planning.plan import run

    run(Path.cwd(), only, slots, slots_per_gpu, as_json=json)


@command(app, "med-r1 reproduce", "med-r1 reproduce --only 'train@*' --slots 2", panel=PANEL)
def reproduce(
    only: Only = None, slots: Slots = None, gpus: Gpus = None, slots_per_gpu: SlotsPerGpu = 1
) -> int:
    """Bring every result up to date, several stages at a time.

    Results are those of `dvc repro`. Re-run after an interruption to resume.
    """
    exit_on_termination()
    use_own_prefect(Path.cwd())
    from flows.reproduce.flow import run

    return run(only, slots, _split(gpus), slots_per_gpu)


@command(app, "med-r1 workers --only 'train@*'", panel=PANEL)
def workers(
    only: Only = None,
    repository: Annotated[
        str | None, Option(help="Git repository that workers clone; by default origin.")
    ] = None,
    deployment: Annotated[
        str, Option(help="Deployment that runs the stages.")
    ] = "run-stage-on-worker/gpu",
    slots_per_gpu: SlotsPerGpu = 1,
) -> int:
    """Bring every result up to date, GPU stages on other hosts.

    Needs PREFECT_API_URL; docs/hosts.md describes how to set up workers.
    """
    exit_on_termination()
    use_own_prefect(Path.cwd())
    from flows.workers.flow import run

    return run(only, repository, deployment, slots_per_gpu)


@command(app, "med-r1 retrain --dry-run", "med-r1 retrain --start-from champion", panel=PANEL)
def retrain(
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would be done, change nothing.")
    ] = False,
    force: Annotated[
        bool, Option("--force", help="Continue without new data, or with data refused earlier.")
    ] = False,
    start_from: Annotated[
        Literal["base", "champion"] | None,
        Option(help="Start of trainings affected by new data; by default as in params.yaml."),
    ] = None,
    slots: Slots = None,
    gpus: Gpus = None,
    slots_per_gpu: SlotsPerGpu = 1,
) -> int:
    """Train on new data, and promote the result if it is not worse.

    Exit code: 0 promoted or not, 1 if the data was refused or a stage failed.
    """
    exit_on_termination()
    use_own_prefect(Path.cwd())
    from flows.retraining.flow import run

    return run(dry_run, force, start_from, slots, _split(gpus), slots_per_gpu)


def _split(gpus: str | None) -> list[str] | None:
    return gpus.split(",") if gpus else None
