"""The flow that takes new data: look, fetch, check, train what it touches, let the gate decide.

    med-r1 retrain                        retrain if the corpus source has new data
    med-r1 retrain --dry-run                    look, and say what would be done
    med-r1 retrain --force                compare the current settings with the champion
    med-r1 retrain --start-from champion  start affected trainings from the champion's weights

What is decided is written to champions/decisions/; `med-r1 champion rollback` takes a promotion
back.
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

from flows.dvc_api.client import StageError, StoppedError
from flows.prefect_api.client import require_server
from flows.registry.snapshot import AlreadyRunningError, only_retraining
from flows.retraining.decision import markdown, read_decisions
from flows.retraining.run import Result, Retraining, RetrainOptions, RetrainOutcome, Start
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
) -> State[Any]:
    """Fetch new data, retrain what it affects, and promote the result if it passes the gate.

    Args:
        dry_run: Look at the source and say what would be done; nothing is changed.
        force: Continue without new data (compare the current settings) or with data refused before.
        start_from: Initial weights of affected trainings, base or champion. Default: params.yaml.
        slots: GPU stages at once: at most one per GPU. On a machine without GPUs one if left out.
        gpus: Indices of the GPUs to use; all that are visible if left out.
        root: Folder of the workspace; the current one if left out.
    """
    from flows.reproduce import reproduce

    workspace, logger = Path(root or Path.cwd()).resolve(), get_run_logger()

    def bring_up_to_date(only: list[str] | None) -> Sequence[Result]:
        return reproduce(only=only, slots=slots, gpus=gpus, root=str(workspace)).results

    try:
        with only_retraining(workspace):
            wishes = RetrainOptions(dry_run, force, start_from)
            ended = Retraining(
                workspace, wishes, bring_up_to_date, find_slots(workspace, slots, gpus), logger.info
            ).run()
    except AlreadyRunningError as error:
        return Completed(
            name="AlreadyRunning", message=f"{error}; this one has nothing to do", data=None
        )
    except RefusedDropError as error:
        _show(read_decisions(workspace)[-1])
        return Failed(
            name="Refused",
            message=f"the new data was refused, and the workspace is as before: {error}",
            data=error,
        )
    except (
        InputError,
        StageError,
        StoppedError,
        StagesFailedError,
    ) as error:  # what a person can mend needs no traceback
        return Failed(message=str(error), data=error)
    if ended.decision:
        _show(ended.decision)
    return Completed(name=ended.name, message=ended.message, data=ended)


def _show(decision: dict[str, Any]) -> None:
    create_markdown_artifact(
        markdown(decision),
        key="retraining",
        description=f"{decision['outcome']}: {'; '.join(decision['reasons'])}"[:500],
    )


def run(
    dry_run: bool, force: bool, start_from: Start | None, slots: int | None, gpus: list[str] | None
) -> int:
    """Run the flow in the working directory and print the outcome.

    Exit code 0 done, 1 refused or failed.
    """
    require_server()
    state = retrain(
        dry_run=dry_run,
        force=force,
        start_from=start_from,
        slots=slots,
        gpus=gpus,
        return_state=True,
    )
    if not state.is_completed():
        print(f"error: {state.message}", file=sys.stderr)
        return 1
    ended = state.result(raise_on_failure=False)
    if isinstance(ended, RetrainOutcome) and ended.decision:
        print(markdown(ended.decision))
    print(f"{state.name}: {state.message}")
    return 0
