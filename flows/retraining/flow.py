"""The retraining flow: probe, fetch, validate, retrain the affected stages, let the gate decide.

    med-r1 retrain                        retrain if the corpus source has new data
    med-r1 retrain --dry-run              print what a run would do
    med-r1 retrain --force                compare the current settings with the champion
    med-r1 retrain --start-from champion  start affected trainings from the champion's weights

Decisions are written to champions/decisions/; `med-r1 champion rollback` reverts a promotion.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.dvc_api.runner import StageError, StoppedError
from flows.prefect_api.client import require_server
from flows.registry.snapshot import AlreadyRunningError, champion_lock
from flows.retraining.context import Result, Retraining, RetrainOptions, RetrainOutcome, Start
from flows.retraining.decision import markdown, read_decisions
from flows.retraining.run import run_retraining
from flows.retraining.validate import RefusedDropError
from flows.scheduling.schedule import StagesFailedError
from flows.scheduling.slots import find_slots
from stages.core.errors import InputError


@flow(name="retrain", flow_run_name="retrain on new data", validate_parameters=True)
def retrain(
    dry_run: bool = False,
    force: bool = False,
    start_from: Start | None = None,
    slots: int | None = None,
    gpus: list[str] | None = None,
    root: str | None = None,
    slots_per_gpu: int = 1,
) -> State[Any]:
    """Fetch new data, retrain what it affects, and promote the result if it passes the gate.

    Args:
        dry_run: Probe the source and print what a run would do; change nothing.
        force: Continue without new data (compare the current settings) or with data refused before.
        start_from: Initial weights of affected trainings, base or champion. Default: params.yaml.
        slots: GPU stages at once, at most `slots_per_gpu` per GPU, which is the default. Default
            without GPUs: one for each base.threads cores.
        gpus: Indices of the GPUs to use. Default: all visible ones.
        root: Folder of the workspace. Default: the current one.
        slots_per_gpu: Stages that share a GPU, each with its part of the memory.
    """
    from flows.reproduce.flow import reproduce

    workspace = Path(root or Path.cwd()).resolve()
    logger = get_run_logger()

    def bring_up_to_date(only: list[str] | None) -> Sequence[Result]:
        return reproduce(
            only=only, slots=slots, gpus=gpus, root=str(workspace), slots_per_gpu=slots_per_gpu
        ).results

    try:
        with champion_lock(workspace):
            options = RetrainOptions(dry_run, force, start_from)
            gpu_slots = find_slots(workspace, slots, gpus, slots_per_gpu)
            outcome = run_retraining(
                Retraining(workspace, options, bring_up_to_date, gpu_slots, logger.info)
            )
    except AlreadyRunningError as error:
        message = f"{error}; this run has nothing to do"
        return Completed(name="AlreadyRunning", message=message, data=None)
    except RefusedDropError as error:
        _create_artifact(read_decisions(workspace)[-1])
        message = f"the new data was refused and the workspace rolled back: {error}"
        if error.findings:
            message += (
                f". Its own quarantine and data tests are in {error.findings}; those in data/ are"
                " of the corpus in use"
            )
        return Failed(name="Refused", message=message, data=error)
    # user-fixable errors: no traceback
    except (InputError, StageError, StoppedError, StagesFailedError) as error:
        return Failed(message=str(error), data=error)
    if outcome.decision:
        _create_artifact(outcome.decision)
    return Completed(name=outcome.name, message=outcome.message, data=outcome)


def _create_artifact(decision: dict[str, Any]) -> None:
    create_markdown_artifact(
        markdown(decision),
        key="retraining",
        description=f"{decision['outcome']}: {'; '.join(decision['reasons'])}"[:500],
    )


def run(
    dry_run: bool,
    force: bool,
    start_from: Start | None,
    slots: int | None,
    gpus: list[str] | None,
    slots_per_gpu: int,
) -> int:
    """Run the flow in the working directory and print the outcome; 1 if refused or failed."""
    require_server()
    state = retrain(
        dry_run=dry_run,
        force=force,
        start_from=start_from,
        slots=slots,
        gpus=gpus,
        slots_per_gpu=slots_per_gpu,
        return_state=True,
    )
    if not state.is_completed():
        print(f"error: {state.message}", file=sys.stderr)
        return 1
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, RetrainOutcome) and outcome.decision:
        print(markdown(outcome.decision))
    print(f"{state.name}: {state.message}")
    return 0
